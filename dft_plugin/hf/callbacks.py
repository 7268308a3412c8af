"""What rides along a run whose trainer a host makes by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from dft_plugin.errors import NotActiveError
from dft_plugin.hf.trainer import TrainerHook


def is_active(trainer: Any) -> bool:
    """Say whether a loss of ours is on a trainer."""
    return isinstance(getattr(trainer.compute_loss, "__self__", None), TrainerHook)


class MustBeActive(TrainerCallback):
    """Stops a run whose trainer never got the loss, before its first step and after its first evaluated batch."""

    def __init__(self, is_active: Callable[[], bool], why: str) -> None:
        """Make one for a run.

        Args:
            is_active: says whether the loss is on the run's trainer.
            why: what must have happened if it is not, and what to do next.
        """
        self._is_active = is_active
        self._why = why

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Stop before anything is updated."""
        self._check("training begins")

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Stop an evaluation that no training went before."""
        self._check("an evaluation runs")

    def _check(self, what: str) -> None:
        if not self._is_active():
            raise NotActiveError(f"{what} without the loss that `loss:` asks for: {self._why}")
