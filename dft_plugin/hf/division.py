"""Whether a `training_step` divides the loss of a micro-batch by the accumulation steps: seen in the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from dft_plugin.errors import ConflictError
from dft_plugin.hf.counting import micro_batches_of


class Division:
    """Follows the losses that one step was given and has still to divide.

    By the graph and not by values: a micro-batch without targets has a loss of zero whatever it is divided by, what is
    added to the loss is the user's own, and a division in place changes the tensor that was given.
    """

    def __init__(self) -> None:
        self._edges: list[GradientEdge] = []
        self._hooks: list[Any] = []
        self._arrived: list[Tensor] = []

    def follow(self, loss: Tensor) -> None:
        """Watch what becomes of a loss, a scalar with a graph; one without is not trained."""
        if loss.grad_fn is None:
            return
        edge = get_gradient_edge(loss)

        def arrive(gradients: Sequence[Tensor | None]) -> None:
            gradient = gradients[edge.output_nr]
            if gradient is not None:
                self._arrived.append(gradient.detach())

        self._edges.append(edge)
        self._hooks.append(edge.node.register_prehook(arrive))

    def factors(self, loss: Tensor | None) -> list[float]:
        """By what the losses were multiplied.

        Args:
            loss: a scalar, what is about to go backward; None: it has gone, in whatever way.

        Returns:
            One for each loss that is trained. Empty: none was given, or none went backward.
        """
        edges, self._edges = self._edges, []
        for hook in self._hooks:
            hook.remove()
        if not edges or loss is None:
            return [float(gradient) for gradient in self._arrived]
        if not loss.requires_grad:
            return []
        found: tuple[Tensor | None, ...] = torch.autograd.grad(loss, edges, retain_graph=True, allow_unused=True)
        return [float(gradient) for gradient in found if gradient is not None]


def passes_on(
    trainer: Any, base: type, loss: Tensor, losses: Tensor, number: Tensor, micro_batch: int, divisor: float
) -> bool:
    """Say whether a `compute_loss` passes the number of a step's targets on to the one that it inherits.

    Args:
        trainer: whose it is.
        base: the class that sums losses up and divides them.
        loss: what came out, a scalar.
        losses: what was summed up, of any shape.
        number: the count that was given, a scalar that asks for a gradient.
        micro_batch: the targets of the micro-batch.
        divisor: what divides the loss of a step.

    Raises:
        ConflictError: it does not, and the loss was divided by something else.
    """
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        loss, (losses, number), retain_graph=True, allow_unused=True
    )
    gradient, by_number = found
    if by_number is not None or gradient is None or micro_batch == 0:
        return by_number is not None
    by = abs(float(1 / gradient.reshape(-1)[0]))
    # One micro-batch may be the whole step, or the count be passed on as a number: that is as good, this time.
    if abs(by - divisor) < 0.001 * divisor or abs(micro_batch - divisor) < 0.001 * divisor:
        return False
    raise ConflictError(
        [
            f"{type(trainer).__name__}.compute_loss calls {base.__name__}'s without num_items_in_batch: the loss of a "
            f"micro-batch of {micro_batch} targets was divided by {by:.6g}, that of the step's {divisor:.6g} is not "
            "in it, and steps would depend on how a batch is split. Pass num_items_in_batch on as it was given."
        ]
    )


def require_division(trainer: Any, factors: Sequence[float], steps: int, scales: Sequence[float]) -> None:
    """Stop where the mean of a micro-batch is not divided by the accumulation steps.

    Args:
        trainer: whose `training_step` it was.
        factors: by what its losses were multiplied.
        steps: micro-batches of this optimizer step.
        scales: by what the backward pass may have multiplied them besides.

    Raises:
        ConflictError: says by what the loss was multiplied.
    """
    for factor in factors:
        # A loss in bfloat16 has eight bits.
        if not any(math.isclose(factor, scale / steps, rel_tol=4e-3) for scale in scales):
            raise ConflictError(
                [
                    f"{type(trainer).__name__}.training_step calls compute_loss without num_items_in_batch (or for a "
                    "trainer whose model_accepts_loss_kwargs is False), which asks for the mean of a micro-batch, and "
                    f"does not divide the loss by the {steps} accumulation steps of this optimizer step: it was "
                    f"multiplied by {factor:.4g}, and steps would depend on how a batch is split. Divide by "
                    "self.current_gradient_accumulation_steps (the last step of an epoch may have fewer than "
                    "args.gradient_accumulation_steps), or pass num_items_in_batch on to compute_loss and do not "
                    "divide, or set gradient_accumulation_steps to 1."
                ]
            )


def check_division(trainer: Any, division: Division, loss: Tensor | None, looked_at: set[int]) -> None:
    """Stop where a `training_step` asked for the mean of a micro-batch and did not divide it by their number.

    Args:
        trainer: whose step it is.
        division: of its losses.
        loss: as `Division.factors` takes it.
        looked_at: sizes of windows of which it is known; a window of another size may be divided by the wrong number.

    Raises:
        ConflictError: it does not divide.
    """
    steps = micro_batches_of(trainer)
    factors = division.factors(loss)
    if not factors or steps in looked_at:
        return
    scaler = trainer.accelerator.scaler if loss is None else None
    require_division(trainer, factors, steps, [1.0] if scaler is None else [1.0, scaler.get_scale()])
    looked_at.add(steps)
