"""What a host's run in this process left behind, for tests to compare."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from support import tiny, training


@dataclass
class Run:
    """A run.

    Attributes:
        trainer: the host's.
        before: copies of what trains, before the first step.
        batches: every micro-batch of the first step, as the trainer's `training_step` got it.
        expected: loss of the first step in float64, from the model's own logits.
    """

    trainer: Any = None
    before: dict[str, Tensor] = field(default_factory=dict)
    batches: list[dict[str, Any]] = field(default_factory=list)
    expected: float = float("nan")

    @property
    def after(self) -> dict[str, Tensor]:
        return training.trained(self.trainer.model)

    @property
    def losses(self) -> list[float]:
        return training.losses(self.trainer)

    @property
    def logs(self) -> list[dict[str, float]]:
        return training.train_logs(self.trainer)

    @property
    def evaluations(self) -> list[dict[str, float]]:
        return [entry for entry in self.trainer.state.log_history if "eval_loss" in entry]

    @property
    def moved(self) -> float:
        """How far training went; a test that compares weights must see more than nothing."""
        return tiny.max_gap(self.before, self.after)
