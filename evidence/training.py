"""The training loop: the plugin's own `attach`, AdamW, a cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dft_plugin import Clock, attach

Wait = Callable[[], None]


@dataclass(frozen=True)
class Schedule:
    """How long, and how fast.

    Attributes:
        steps: of the optimizer.
        rows: of a batch.
        rate: the highest learning rate; a tenth of the steps lead to it, and a cosine leads down from it.
    """

    steps: int = 300
    rows: int = 32
    rate: float = 1e-3

    def at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = max(1, self.steps // 10)
        if step < warm:
            return self.rate * (step + 1) / warm
        down = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))
        return self.rate * max(down, 0.02)


def fit(
    model: PreTrainedModel, batches: Iterator[dict[str, Tensor]], schedule: Schedule, loss: Any, wait: Wait
) -> list[dict[str, float]]:
    """Train a model, and return what the plugin logged over each tenth of the steps.

    Args:
        model: is changed.
        batches: one a step.
        schedule: how long, how fast.
        loss: what may stand after `loss:`.
        wait: is called before each step, and returns when it may be taken.
    """
    model.train()
    attachment, logs = attach(model, loss), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.rate, weight_decay=0.01, betas=(0.9, 0.95))
    every = max(1, schedule.steps // 10)
    for step in range(schedule.steps):
        wait()
        attachment.clock = Clock(step, schedule.steps, 0.0)
        for group in optimizer.param_groups:
            group["lr"] = schedule.at(step)
        model(**next(batches)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % every == 0 or step + 1 == schedule.steps:
            logs.append({"step": step + 1, **attachment.drain(training=True).as_logs()})
    attachment.detach()
    model.eval()
    return logs
