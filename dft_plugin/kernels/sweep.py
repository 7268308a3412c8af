"""What the kernels share that are given hidden states: one autograd.Function; and a sweep over chunks of tokens.

Shapes: T scored tokens, C tokens of a chunk, D hidden size, V vocabulary (or the rows of it on this rank).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dft_plugin.kernels.allocation import new_rows
from dft_plugin.kernels.gradients import LINEAR_PER_TOKEN, Gradients, Inputs, Projection, add_chunk_
from dft_plugin.kernels.results import as_outputs, from_outputs, join, weigh
from dft_plugin.kernels.softmax import Scored
from dft_plugin.kernels.terms import is_soft, score_softly_
from dft_plugin.kernels.types import IDENTITY, KernelResult, Transform, refuse_second_derivative
from dft_plugin.kernels.weighing import by_scope
from dft_plugin.objectives import RowStatistic, Targets, Weigher


class Scorer(Protocol):
    """Scores all tokens of a call, whatever autocast says when it is called: backward may call it again."""

    @property
    def objective(self) -> Weigher:
        """Gives the weights."""
        ...

    def __call__(self, targets: Targets, inputs: Inputs, wanted: tuple[bool, ...]) -> tuple[KernelResult, Gradients]:
        """Score, and make the gradients of those `inputs` that are `wanted`."""
        ...


def score(scorer: Scorer, targets: Targets, *inputs: Tensor | None) -> KernelResult:
    """Score with gradients made in the forward pass; backward multiplies them by the upstream factor.

    Args:
        scorer: makes them.
        targets: with ids in [0, V).
        *inputs: hidden states [T, D], and what else may get a gradient.
    """
    outputs = _GradientInForward.apply(  # type: ignore[no-untyped-call]
        scorer, torch.is_grad_enabled(), targets, *inputs
    )
    return from_outputs(outputs, scorer.objective)


class _GradientInForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scorer: Scorer, with_grad: bool, targets: Targets, *inputs: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        wanted = tuple(with_grad and need for need in ctx.needs_input_grad[3:])
        result, grads = scorer(targets, inputs, wanted)
        ctx.scorer, ctx.targets, ctx.wanted, ctx.grads = scorer, targets, wanted, grads
        ctx.save_for_backward(*inputs)
        return as_outputs(ctx, result)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        # The gradients are handed over, not copied: an optimizer step may want their memory. A second
        # backward over the same graph makes them again.
        grads, ctx.grads = ctx.grads, None
        inputs = ctx.saved_tensors
        if grads is None:
            _, grads = ctx.scorer(ctx.targets, inputs, ctx.wanted)
        return None, None, None, *grads.times(upstream, inputs)


@dataclass(frozen=True)
class Sweep:
    """A `Scorer` that goes over chunks of tokens, each against all rows of the weight.

    Attributes:
        objective: gives the weights.
        dtype: of the GEMMs.
        rows: tokens of a chunk.
        score_: takes raw logits [C, V] and targets [C], returns statistics, and leaves in the logits what
            `softmax.score_block_` does.
        twice: whether a weight that looks at other tokens takes a second sweep, given which inputs want a gradient.
        sum_hidden: completes the gradient of the hidden states: nothing to do, or a sum over ranks.
        transform: what the model does to raw logits, for soft targets; `score_` knows it.
        needs: costly statistics to return, for the same.
    """

    objective: Weigher
    dtype: torch.dtype
    rows: int
    score_: Callable[[Tensor, Tensor], Scored]
    twice: Callable[[tuple[bool, ...]], bool]
    sum_hidden: Callable[[Tensor], Tensor] = lambda grad_TD: grad_TD
    transform: Transform = IDENTITY
    needs: frozenset[RowStatistic] = frozenset()

    def __call__(self, targets: Targets, inputs: Inputs, wanted: tuple[bool, ...]) -> tuple[KernelResult, Gradients]:
        """Score all chunks, one after the other in the same buffer."""

        def run(weigher: Callable[[slice], Weigher], wanted: tuple[bool, ...]) -> tuple[KernelResult, Gradients]:
            return self._score(targets, inputs, wanted, weigher)

        with torch.autocast(targets.ids_T.device.type, enabled=False):
            result, grads = by_scope(run, self.objective, targets, wanted, twice=self.twice(wanted))
        if grads.of[0] is not None:
            grads.of[0] = self.sum_hidden(grads.of[0])
        return result, grads

    def _score(
        self, targets: Targets, inputs: Inputs, wanted: tuple[bool, ...], weigher: Callable[[slice], Weigher]
    ) -> tuple[KernelResult, Gradients]:
        hidden_TD, input_TR = inputs[0], inputs[3]
        assert hidden_TD is not None
        T = hidden_TD.shape[0]
        projection = Projection.of(inputs, self.dtype)
        grads = Gradients.like(inputs, wanted, self.dtype, LINEAR_PER_TOKEN)
        buffer_CV = new_rows(projection.weight_VD, min(self.rows, T))
        parts: list[KernelResult] = []
        for start in range(0, max(T, 1), self.rows):
            chunk = slice(start, min(start + self.rows, T))
            hidden_CD = hidden_TD[chunk].to(self.dtype)
            input_CR = None if input_TR is None else input_TR[chunk].to(self.dtype)
            logits_CV = projection.into(buffer_CV[: hidden_CD.shape[0]], hidden_CD, input_CR)
            part, factor_C = self._weigh_(logits_CV, targets[chunk], weigher(chunk))
            parts.append(part)
            add_chunk_(grads, projection, chunk, logits_CV, factor_C, hidden_CD, input_CR)
        return join(parts), grads

    def _weigh_(self, logits_CV: Tensor, targets: Targets, weigher: Weigher) -> tuple[KernelResult, Tensor]:
        """Score a chunk of raw logits; leaves its gradient in their place, up to the factors that are returned."""
        if is_soft(weigher):
            return score_softly_(logits_CV, targets, weigher, self.transform, self.needs)
        scored = self.score_(logits_CV, targets.ids_T)
        part = weigh(weigher, scored.rows, targets)
        return part, part.weight_T * scored.inverse_norm_T
