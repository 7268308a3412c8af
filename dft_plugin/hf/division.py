"""Whether a `training_step` divides the loss of a micro-batch by the accumulation steps: seen in the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from dft_plugin.errors import ConflictError


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
