"""What a trainer was given, micro-batch by micro-batch, trained again by hand in float64: the same in every host."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from support import by_hand, tiny, training

Formula = Callable[..., Tensor]
"""Makes the loss of each token [T] from logits [T, V], ids [T] and, by name, `ref_logits`, `sequence`, `step` and the
columns of the batch; as those of `support.family` do."""


@dataclass
class Given:
    """What a trainer began with, and was given.

    Attributes:
        model: a copy of it as it began.
        batches: of `training_step`, in their order.
    """

    model: Any
    batches: list[dict[str, Tensor]] = field(default_factory=list)


def watched(trainer: Any) -> Given:
    """Return what will be known once a trainer has trained."""
    given, step = Given(copy.deepcopy(trainer.model)), trainer.training_step

    def training_step(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        given.batches.append({key: value.clone() for key, value in inputs.items() if isinstance(value, Tensor)})
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = training_step
    return given


def move_adapters(model: Any) -> None:
    """Move B of LoRA from zero, so that a model is not its base, and the first step trains A as well."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)


def tokens(batch: dict[str, Tensor], model: Any, reference: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return logits and ids of the targets of a batch, and by name what formulas read of them besides."""
    asked = {key: value for key, value in batch.items() if key != "labels" and not key.startswith("dft_")}
    asked = {key: value.double() if value.is_floating_point() else value for key, value in asked.items()}
    labels = batch["labels"][:, 1:]
    kept = labels != -100
    logits = model(**asked).logits[:, :-1][kept]
    with torch.no_grad(), reference.disable_adapter() if hasattr(reference, "disable_adapter") else nullcontext():
        ref_logits = reference(**asked).logits[:, :-1][kept]
    columns = {key.removeprefix("dft_bits_"): value for key, value in batch.items() if key.startswith("dft_bits_")}
    read = {name: value.view(torch.float32)[:, 1:][kept].double() for name, value in columns.items()}
    return logits, labels[kept], {"ref_logits": ref_logits, "sequence": _sequences(batch)[:, 1:][kept], **read}


def _sequences(batch: dict[str, Tensor]) -> Tensor:
    """Positions that do not go on are those of another packed sequence; without positions a row is one."""
    shape = batch["labels"].shape
    position = batch.get("position_ids", torch.arange(shape[1]).expand(shape))
    # Of several axes: the first counts text.
    position = position[0] if position.dim() == 3 else position.reshape(shape)
    begins = torch.ones(shape, dtype=torch.bool)
    begins[:, 1:] = position[:, 1:] != position[:, :-1] + 1
    return begins.flatten().long().cumsum(0).view(shape)


def trained(given: Given, micro_batches: int, formula: Formula) -> by_hand.Found:
    """Train a copy of the model with SGD, each step on so many micro-batches, over the number of their targets."""
    model, reference = (copy.deepcopy(given.model).double() for _ in range(2))
    model.train()
    reference.eval()
    losses = []
    for step in range(len(given.batches) // micro_batches):
        batches = given.batches[step * micro_batches : (step + 1) * micro_batches]
        count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        model.zero_grad()
        value = 0.0
        for batch in batches:
            logits, ids, read = tokens(batch, model, reference)
            loss = formula(logits, ids, step=step, **read).sum() / count
            loss.backward()
            value += float(loss.detach())
        losses.append(value)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= by_hand.RATE * parameter.grad
    return by_hand.Found(training.trained(model), losses)


def said(given: Given, micro_batches: int) -> dict[str, float]:
    """Return what `log: [top1, entropy]` has to say of the first step."""
    model = copy.deepcopy(given.model).double()
    parts = [tokens(batch, model, model) for batch in given.batches[:micro_batches]]
    logits, ids = (torch.cat([part[at] for part in parts]) for at in (0, 1))
    q = logits.double().softmax(1)
    return {
        "dft/top1": (logits.argmax(1) == ids).double().mean().item(),
        "dft/entropy": -(q * q.log()).sum(1).mean().item(),
    }


def require(trainer: Any, given: Given, micro_batches: int, formula: Formula, rounded: float = 0.0) -> None:
    """Assert that a trainer has logged, and trained, what a formula says.

    Args:
        trainer: that has trained, at a rate of `by_hand.RATE`.
        given: what it was given.
        micro_batches: of a step.
        formula: of the loss of a token.
        rounded: by how much its host rounds what it logs.
    """
    expected, logs = trained(given, micro_batches, formula), training.train_logs(trainer)
    assert [entry["loss"] for entry in logs] == pytest.approx(expected.losses, rel=1e-5, abs=rounded)
    assert [entry["dft/loss"] for entry in logs] == pytest.approx(expected.losses, rel=1e-5)
    if "dft/top1" in logs[0]:
        wanted = said(given, micro_batches)
        assert {key: logs[0][key] for key in wanted} == pytest.approx(wanted, rel=1e-5)
    began = training.trained(given.model)
    ours = {name: value.double() for name, value in training.trained(trainer.model).items()}
    assert tiny.max_gap(ours, began) > 1e-4, "nothing was trained"
    assert tiny.max_gap(ours, expected.weights) < 5e-6
