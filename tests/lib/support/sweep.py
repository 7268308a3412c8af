"""Every class of transformers that asks for the next token as a tiny random model, and what an attached loss does.

`text` are the causal LMs, by model type; `multimodal` what sees or hears and writes, by class.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dft_plugin import attach
from dft_plugin.errors import DftError
from support import multimodal, oracle
from support.shrinking import VARIANTS, VOCAB, build

PATH = Path(__file__).parents[2] / "attachment" / "sweep_expected.json"

BROKEN = {"Llama4ForConditionalGeneration": "5.24.0"}
"""Classes whose own forward fails in a release: this one asks its language model's output for `image_outputs`."""

Inputs = dict[str, Any]
Batches = Callable[[PreTrainedModel], Iterable[tuple[str, Inputs]]]


@dataclass(frozen=True)
class Finding:
    """What came of one class.

    Attributes:
        kind: `lean`, `opaque`, `logits`, `refused`, `not run` or `wrong`.
        reason: why it is not lean, or what failed.
        inputs: what the batch held: `text`, `image` or `audio`; nothing where none was run.
        loss_gap: the largest relative difference to the loss that it should be.
        grad_gap: the largest norm-relative difference of all gradients to those that they should be.
    """

    kind: str
    reason: str = ""
    inputs: str = ""
    loss_gap: float = 0.0
    grad_gap: float = 0.0


def model_types() -> list[str]:
    """Every model type that has a causal LM, without importing any of them."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def classes(model_type: str) -> tuple[type[PretrainedConfig], type[PreTrainedModel]]:
    """The config class and the causal LM of a model type."""
    config_class = CONFIG_MAPPING[model_type]
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    return config_class, model_class[0] if isinstance(model_class, tuple) else model_class


def batch() -> Inputs:
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(4, VOCAB - 16, (2, 12), generator=generator)
    labels = input_ids.clone()
    labels[:, :3] = -100
    labels[1, 7:] = -100
    return {"input_ids": input_ids, "labels": labels}


@dataclass(frozen=True)
class Section:
    """One table: which classes, and what they are given.

    Attributes:
        names: their keys in the table.
        classes: config class and model class of a key.
        batches: what to try with a model in turn; the first that it can be trained on is taken.
        variants: configs to try in turn.
    """

    names: Callable[[], list[str]]
    classes: Callable[[str], tuple[type[PretrainedConfig], type[PreTrainedModel]]]
    batches: Batches
    variants: tuple[dict[str, Any], ...]


_MROPES: tuple[dict[str, Any], ...] = ({"mrope": (2, 1, 1)}, {"mrope": (1, 1, 0)})

SECTIONS = {
    "text": Section(model_types, classes, lambda model: [("text", batch())], VARIANTS),
    "multimodal": Section(
        multimodal.class_names,
        multimodal.classes,
        multimodal.batches,
        tuple({**variant, "apart": True} for variant in (*VARIANTS[:1], *_MROPES, *VARIANTS[1:])),
    ),
}


def _step(model: nn.Module, inputs: Inputs) -> tuple[float, Tensor]:
    """Loss, and all gradients in one vector."""
    torch.manual_seed(0)
    return _backward(model, model(**inputs).loss)


def _backward(model: nn.Module, loss: Tensor) -> tuple[float, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    grads = [
        (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in model.parameters() if p.requires_grad
    ]
    return float(loss.detach()), torch.cat(grads)


def _by_hand(model: nn.Module, inputs: Inputs) -> tuple[float, Tensor] | None:
    """DFT in float64 from the class's own logits, plus its router's loss; None if they are not what it scores."""
    torch.manual_seed(0)
    output = model(**inputs)
    logits = output.get("logits")
    if logits is None or logits.shape[:-1] != inputs["labels"].shape:
        return None
    labels = _scored(model, inputs, output.loss)
    added = output.loss - oracle.loss(logits[:, :-1], labels[:, 1:], oracle.nll)
    loss = oracle.loss(logits[:, :-1], labels[:, 1:], oracle.dft)
    if abs(float(added.detach())) < 1e-5:
        return _backward(model, loss)
    # Old releases of Moshi shift twice; there is no telling by hand what else a class may do.
    return _backward(model, loss + added) if output.get("aux_loss") is not None else None


def _scored(model: nn.Module, inputs: Inputs, loss: Tensor) -> Tensor:
    """The labels, without those at padded positions where the class's own loss is the same without them."""
    if "attention_mask" not in inputs:
        return inputs["labels"]
    labels = inputs["labels"].masked_fill(inputs["attention_mask"] == 0, -100)
    torch.manual_seed(0)
    with torch.no_grad():
        without = model(**{**inputs, "labels": labels}).loss
    return labels if abs(float(without) - float(loss.detach())) < 1e-6 else inputs["labels"]


def study(section: Section, key: str) -> Finding:
    """Attach to a tiny model of the class: `nll` gives its own loss and gradients, `dft` those by hand."""
    try:
        config_class, model_class = section.classes(key)
    except Exception as error:
        return Finding("not run", f"{type(error).__name__}: {_first_line(error)}")
    reason = ""
    for variant in section.variants:
        try:
            model = build(config_class, model_class, variant)
            refused = _refusal(model)
            if refused:
                return refused
            what, inputs = next(iter(section.batches(model)))
            # Twice: a model that cannot take a second step by itself proves nothing.
            stock = [_step(model, inputs) for _ in range(2)][1]
        except Exception as error:
            # The first failure says what is missing; the others say what a variant broke.
            reason = reason or f"{type(error).__name__}: {_first_line(error)}"
            continue
        if not (math.isfinite(stock[0]) and stock[1].norm() > 0):
            return Finding("not run", f"its own loss is {stock[0]}, the norm of its gradient {stock[1].norm()}")
        return replace(_compare(model, inputs, stock), inputs=what)
    return Finding("not run", reason)


def _refusal(model: PreTrainedModel) -> Finding | None:
    try:
        attach(model, "nll").detach()
    except DftError as error:
        return Finding("refused", _first_line(error))
    return None


def _compare(model: PreTrainedModel, inputs: Inputs, stock: tuple[float, Tensor]) -> Finding:
    truths = {"nll": stock, "dft": _by_hand(model, inputs)}
    worst = Finding("")
    for loss, truth in truths.items():
        if truth is None:
            continue
        attachment = attach(model, loss)
        try:
            ours = _step(model, inputs)
        except DftError as error:
            return Finding("refused", _first_line(error))
        except Exception as error:
            return Finding("wrong", f"{type(error).__name__}: {_first_line(error)}")
        loss_gap = abs(ours[0] - truth[0]) / max(abs(truth[0]), 1e-12)
        grad_gap = float((ours[1] - truth[1]).norm() / truth[1].norm())
        route = attachment.route
        assert route is not None
        kind = "logits" if route.path == "logits" else "opaque" if route.why_not_lean else "lean"
        if loss_gap > 1e-4 or grad_gap > 1e-3:
            reason = f"{loss}, {kind}: {route.why_not_lean}; {truth[0]} -> {ours[0]}"
            return Finding("wrong", reason, "", loss_gap, grad_gap)
        worst = Finding(
            kind, route.why_not_lean or "", "", max(worst.loss_gap, loss_gap), max(worst.grad_gap, grad_gap)
        )
        attachment.detach()
    return worst


def _first_line(error: Exception) -> str:
    lines = (str(error).strip() or "no message").splitlines()
    # What validates configs says in the second line what it found.
    return lines[1].strip() if "validation error for validator" in lines[0] and len(lines) > 1 else lines[0]


def row(name: str, key: str) -> dict[str, str]:
    """What the checked-in table of a section keeps of a study."""
    section = SECTIONS[name]
    finding = study(section, key)
    class_name = key if name == "multimodal" else section.classes(key)[1].__name__
    # Measured numbers differ between machines; what remains is the reason.
    reason = re.sub(r" \([^()]*\d[^()]*\)", "", finding.reason).removeprefix(f"{class_name} ")
    kept = {"class": class_name, "kind": finding.kind, "reason": reason}
    return {**kept, "inputs": finding.inputs} if name == "multimodal" else kept


def render(table: dict[str, dict[str, str]]) -> str:
    """One table of one version of transformers as Markdown, what is not lean first."""
    order = ["refused", "logits", "opaque", "not run", "lean"]
    rows = sorted(table.items(), key=lambda item: (order.index(item[1]["kind"]), item[1]["class"], item[0]))
    with_inputs = any("inputs" in entry for entry in table.values())
    second = "tried with" if with_inputs else "model type"
    lines = [f"| class | {second} | path | why |", "|---|---|---|---|"]
    for key, entry in rows:
        detail = entry["inputs"] if with_inputs else f"`{key}`"
        lines.append(f"| `{entry['class']}` | {detail} | {entry['kind']} | {entry['reason']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the tables of the installed transformers into tests/attachment/sweep_expected.json."""
    tables = json.loads(PATH.read_text()) if PATH.exists() else {}
    tables[transformers.__version__] = {
        name: {key: row(name, key) for key in section.names()} for name, section in SECTIONS.items()
    }
    PATH.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
