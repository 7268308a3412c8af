"""Which labelled calls of a model are a trainer's own calls for a loss, and so ours to answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dft_plugin.core.loss import LossResult, NumItems, normalise
from dft_plugin.core.plan import LossPlan
from dft_plugin.errors import ConflictError
from dft_plugin.hf.attachment import Attachment


@dataclass(frozen=True)
class LossCall:
    """One run of a trainer's `compute_loss`.

    Attributes:
        grad: whether the loss is to have a graph, as in a training step.
        calls: labelled passes that the attachment had answered when it began.
        adapters: which of PEFT's were on then.
    """

    grad: bool
    calls: int
    adapters: tuple[str, ...] | None


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
        self._loss_call = LossCall(grad, self.calls, adapters_of(self.model))
        try:
            with self.answering(**how):
                yield
        finally:
            self._loss_call = before

    def asked_for_loss(self) -> bool:
        """Whether a labelled call that arrives now is the trainer's own for a loss.

        In a training step that is a call with a graph: a pass without one is a metric, or a reference. In an
        evaluation nothing has a graph, and it is the first call with the adapters that the step began with: a
        reference is the model without them. Outside of `compute_loss` nobody is told apart.
        """
        call = self._loss_call
        if call is None:
            return True
        if call.grad:
            return torch.is_grad_enabled()
        return self.calls == call.calls and adapters_of(self.model) == call.adapters

    def mean(self, result: LossResult, num_items: NumItems) -> Tensor:
        """Divide what one call scored: by the targets of a step, or as an evaluation of this batch."""
        if num_items is None or self._loss_call is None:
            return super().mean(result, num_items)
        if self._answering is not None and self._answering.rescaling is not None:
            return normalise(result.loss_sum, num_items)
        return result.relative(num_items)

    def answers(self, inputs: dict[str, Any]) -> bool:
        """Whether a call with these arguments gets our loss."""
        return super().answers(inputs) and self.asked_for_loss()


def adapters_of(model: nn.Module) -> tuple[str, ...] | None:
    """Name the adapters of PEFT that are on in a model; None where it has none."""
    if "peft" not in sys.modules:
        return None
    for module in model.modules():
        if hasattr(module, "_disable_adapters"):
            layer: Any = module
            return () if layer._disable_adapters else tuple(layer.active_adapters)
    return None


@contextmanager
def naming_missing_logits(calls: Callable[[], int]) -> Iterator[None]:
    """Say what to do where a user's `compute_loss` reads logits that were never made.

    Args:
        calls: how many labelled calls were answered.

    Raises:
        ConflictError: in the place of what Python says of an attribute of None.
    """
    before = calls()
    try:
        yield
    except (AttributeError, TypeError) as error:
        if "NoneType" not in str(error) or calls() == before:
            raise
        raise ConflictError(
            [
                f"after the loss was computed, something failed on a None ({error}). If that is `outputs.logits`: the "
                "loss is computed from the hidden states, and the logits of a batch are never made. Write `loss: "
                "{name: ..., kernel: logits}` to have them."
            ]
        ) from error
