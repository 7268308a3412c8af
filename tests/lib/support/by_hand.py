"""Training written out by hand in float64: SGD on sums of losses over a whole step's divisor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from support import oracle, training

Row = dict[str, list[int]]

RATE = 0.1
"""Of learning: gradients over sums of small weights are large."""

Formula = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Makes the loss and the share of the divisor of each token [T], from its log p, its sequence and the step."""


def dft(logp: Tensor, sequence: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """-p log p over the sum of p."""
    p = logp.detach().exp()
    return -p * logp, p


def above(threshold: float) -> Formula:
    """-log p of the tokens with p >= threshold, over their number."""

    def formula(logp: Tensor, sequence: Tensor, step: int) -> tuple[Tensor, Tensor]:
        kept = (logp.detach().exp() >= threshold).double()
        return -kept * logp, kept

    return formula


def of_sequence(logp: Tensor, sequence: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """The mean p of a sequence weighs all its tokens; over their number."""
    p = logp.detach().exp()
    mean = torch.stack([p[sequence == number].mean() for number in sequence])
    return -mean * logp, torch.ones_like(p)


def of_batch(logp: Tensor, sequence: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """p over the mean p of the step; over the number of tokens."""
    p = logp.detach().exp()
    return -p / p.mean() * logp, torch.ones_like(p)


@dataclass(frozen=True)
class Found:
    """What came of it.

    Attributes:
        weights: float64, by name.
        losses: of each step.
        tolerance: of the weights of a run in float32: as far as a few of float32's own roundings carry.
    """

    weights: dict[str, Tensor]
    losses: list[float]
    tolerance: float = 2e-6


def scored(model: Any, rows: Sequence[Row], formula: Formula, step: int = 0) -> tuple[Tensor, Tensor]:
    """Return what a formula makes of the targets of some rows, each a sequence."""
    batch = training.collate(list(rows))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    kept = labels != -100
    sequence = torch.arange(len(rows))[:, None].expand(labels.shape)[kept]
    return formula(oracle.log_probabilities(logits[kept], labels[kept]), sequence, step)


def trained(model: Any, steps: Sequence[Sequence[Row]], formula: Formula, clip: float = 0.0) -> Found:
    """Train a copy of a model, each step on all of its rows."""
    exact, losses = stepped(copy.deepcopy(model).double(), steps, formula, clip)
    rounded, _ = stepped(copy.deepcopy(model).float(), steps, formula, clip)
    # How much of a rounding a step makes depends on the step, and on the processor that rounds.
    own = max(float((rounded[name] - value).abs().max()) for name, value in exact.items())
    return Found(exact, losses, max(Found.tolerance, 5 * own))


def stepped(
    model: Any, steps: Sequence[Sequence[Row]], formula: Formula, clip: float
) -> tuple[dict[str, Tensor], list[float]]:
    """Train a model, and return what is trained, and the losses of the steps."""
    model, losses = model.train(), []
    for number, rows in enumerate(steps):
        loss, share = scored(model, rows, formula, number)
        divisor = share.sum()
        mean = loss.sum() / divisor if divisor else loss.sum() * 0
        losses.append(float(mean.detach()))
        model.zero_grad()
        mean.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
    return training.trained(model), losses


def watched(trainer: Any) -> list[Row]:
    """Return the rows that a trainer is given, in their order, once it has trained."""
    collate, seen = trainer.data_collator, list[Row]()

    def collating(features: list[Row]) -> Any:
        seen.extend(features)
        return collate(features)

    trainer.data_collator = collating
    return seen


def in_steps(rows: Sequence[Row], size: int, steps: int) -> list[Sequence[Row]]:
    return [rows[size * step : size * (step + 1)] for step in range(steps)]
