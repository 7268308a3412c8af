"""Target `batches`: a model with the loss attached, given labels, masks and positions of every kind, right or not.

Shapes: B batch, S sequence, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from dft_plugin import attach
from dft_plugin.hf.attachment import Attachment
from reliability.fuzz import oracles
from reliability.fuzz.values import ANYTHING
from reliability.fuzz.verdict import Answered, FaultError, judged, require

VOCAB, WIDTH = 16, 8
GOOD = {"input_ids": torch.arange(8).view(2, 4), "labels": torch.arange(8).view(2, 4)}
ARGUMENTS = ("label", "num_items", "mask", "column", "position", "logits", "shape")


@dataclass
class Batch:
    """A call of a model.

    Attributes:
        inputs: its arguments.
        wrong: what of them is not right; the model itself may refuse it, too.
    """

    inputs: dict[str, Any]
    wrong: dict[str, Any] = field(default_factory=dict)


@cache
def attached() -> tuple[LlamaForCausalLM, Attachment]:
    """Return a tiny model with the loss."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).train()
    return model, attach(model)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Draw a batch; in one of two something is wrong with it."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    ids_BS = torch.randint(0, VOCAB, (rows, length), generator=generator)
    masked = draw(st.lists(st.booleans(), min_size=rows * length, max_size=rows * length))
    labels_BS = ids_BS.masked_fill(torch.tensor(masked).view(rows, length), -100)
    dtype = draw(st.sampled_from([torch.int64, torch.int32]))
    inputs: dict[str, Any] = {"input_ids": ids_BS, "labels": labels_BS.to(dtype)}
    pad = draw(st.integers(0, length))
    if draw(st.booleans()):
        mask_BS = torch.ones_like(ids_BS)
        mask_BS[-1, length - pad :] = 0
        # A row of which nothing is seen is what a model makes of it.
        mask_BS[:, 0] = 1
        inputs["attention_mask"] = mask_BS.to(draw(st.sampled_from([torch.int64, torch.int32, torch.bool])))
    if draw(st.booleans()):
        inputs["position_ids"] = torch.arange(length).expand(rows, length)
    if draw(st.booleans()):
        inputs["num_items_in_batch"] = draw(st.sampled_from([1, 3, 7.5, torch.tensor(5), 0]))
    if draw(st.booleans()):
        inputs["shift_labels"] = inputs["labels"].roll(-1, 1)
    batch = Batch(inputs)
    if draw(st.booleans()):
        _spoil(draw, batch)
    return batch


def _spoil(draw: st.DrawFn, batch: Batch) -> None:
    labels_BS = batch.inputs["labels"]
    kinds = ["labels", "shape", "outside", "dtype", "shift_labels", "num_items_in_batch", "column"]
    what = draw(st.sampled_from(kinds))
    value: Any
    if what == "labels":
        value = draw(ANYTHING.filter(lambda one: one is not None))
        batch.inputs.pop("shift_labels", None)
    elif what == "shape":
        others = [labels_BS[:, :-1], labels_BS[:1], labels_BS.flatten(), labels_BS[None], labels_BS[:, :0]]
        value = draw(st.sampled_from(others))
        batch.inputs.pop("shift_labels", None)
    elif what == "outside":
        value = labels_BS.clone()
        value[-1, -1] = draw(st.sampled_from([VOCAB, -1, -101, 1 << 30]))
    elif what == "dtype":
        dtypes = [torch.float32, torch.bool, torch.uint8, torch.int16, torch.complex64]
        value = labels_BS.to(draw(st.sampled_from(dtypes)))
    elif what == "column":
        what, value = "dft_column_ratio", draw(ANYTHING)
    else:
        value = draw(ANYTHING.filter(lambda one: one is not None))
    batch.inputs["labels" if what in ("shape", "outside", "dtype") else what] = value
    batch.wrong[what] = value


def check(batch: Batch) -> str:
    """Hold a call to the property, and what the model answers afterwards; returns `answered` or `refused`."""
    model, attachment = attached()
    outcome = judged(lambda: _answer(model, batch.inputs), ARGUMENTS)
    if isinstance(outcome, Answered):
        _require_right(batch, outcome.value)
        return "answered"
    require(bool(batch.wrong), f"refused, and nothing is wrong with it: {outcome.problems[0][:300]}")
    _require_right(Batch(GOOD), _answer(model, GOOD))
    require(
        attachment.route is not None and attachment.route.path == "lean", "a bad batch has changed the path for good"
    )
    return "refused"


def _answer(model: LlamaForCausalLM, inputs: dict[str, Any]) -> tuple[float, Tensor | None]:
    model.zero_grad(set_to_none=True)
    loss = model(**inputs).loss
    if loss.requires_grad:
        loss.backward()
    return float(loss.detach()), model.lm_head.weight.grad


def _require_right(batch: Batch, found: tuple[float, Tensor | None]) -> None:
    model, attachment = attached()
    inputs = batch.inputs
    labels = inputs.get("shift_labels", inputs["labels"])
    if set(batch.wrong) & {"labels", "shift_labels", "shape", "num_items_in_batch"} or labels.is_complex():
        return
    plain = {key: inputs[key] for key in ("input_ids", "attention_mask", "position_ids") if key in inputs}
    model.zero_grad(set_to_none=True)
    logits = attachment.original(**plain).logits.double()
    aligned = labels.long()
    if "shift_labels" not in inputs:
        aligned = torch.cat([aligned[:, 1:], torch.full_like(aligned[:, :1], -100)], 1)
    try:
        losses = oracles.oracle.token_losses(logits, aligned)
    except (RuntimeError, IndexError) as error:
        raise FaultError(f"answered where no loss can be computed: {str(error)[:200]}") from error
    count = inputs.get("num_items_in_batch")
    right = losses.sum() / (float(losses.numel() if count is None else count) or 1.0)
    right.backward()
    number = float(right.detach())
    require(oracles.agree(found[0], number, 1e-5), f"the loss is {found[0]!r}, and {number!r} is right")
    gradient = model.lm_head.weight.grad
    assert gradient is not None
    ours = torch.zeros_like(gradient) if found[1] is None else found[1]
    gap, most = float((ours - gradient).abs().max()), float(gradient.abs().max())
    require(gap <= 1e-4 * max(most, 1e-3), f"a gradient is wrong by {gap:g} of {most:g}")
