"""Which labelled calls of a model are a trainer's own calls for a loss, and so ours to answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from dft_plugin.core.loss import LossPlan
from dft_plugin.hf.attachment import Attachment


@dataclass(frozen=True)
class LossCall:
    """One run of a trainer's `compute_loss`.

    Attributes:
        grad: whether the loss is to have a graph, as in a training step.
        calls: labelled passes that the attachment had answered when it began.
    """

    grad: bool
    calls: int


class TrainerAttachment(Attachment):
    """Answers what `compute_loss` asks for, and nothing else that happens inside it."""

    def __init__(self, model: PreTrainedModel, plan: LossPlan) -> None:
        super().__init__(model, plan)
        self._loss_call: LossCall | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model is no trainer's.
        return {**super().__getstate__(), "_loss_call": None}

    def detach(self) -> None:
        """Give the model its forward back and the trainer its methods; the latter also where another has the model."""
        replaced = not self.active
        super().detach()
        while replaced and self.undo:
            self.undo.pop()()

    @contextmanager
    def loss_call(self, *, grad: bool, **how: Any) -> Iterator[None]:
        """Answer the calls for a loss in this block, which is one run of the trainer's `compute_loss`.

        Args:
            grad: whether the loss is to have a graph.
            how: as for `answering`.
        """
        before = self._loss_call
        self._loss_call = LossCall(grad, self.calls)
        try:
            with self.answering(**how):
                yield
        finally:
            self._loss_call = before

    def asked_for_loss(self) -> bool:
        """Whether a labelled call that arrives now is the trainer's own for a loss.

        In a training step that is a call with a graph: a pass without one is a metric, or a reference. In an
        evaluation nothing has a graph, and it is the first call. Outside of `compute_loss` nobody is told apart.
        """
        if self._loss_call is None:
            return True
        return torch.is_grad_enabled() if self._loss_call.grad else self.calls == self._loss_call.calls

    def answers(self, inputs: dict[str, Any]) -> bool:
        """Whether a call with these arguments gets our loss."""
        return super().answers(inputs) and self.asked_for_loss()
