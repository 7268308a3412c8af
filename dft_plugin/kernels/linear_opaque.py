"""Token loss behind a head that can be called but not read (DoRA, quantised, tensor-parallel).

Shapes: T scored tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dft_plugin.kernels.budget import beside_another, chunk_rows
from dft_plugin.kernels.gemm import autocast_dtype
from dft_plugin.kernels.gradients import Gradients, Inputs
from dft_plugin.kernels.logits import may_overwrite, score_logits, score_logits_
from dft_plugin.kernels.results import join
from dft_plugin.kernels.softmax import accumulation_dtype
from dft_plugin.kernels.sweep import score
from dft_plugin.kernels.terms import distribution_of, is_soft
from dft_plugin.kernels.types import KernelResult, OpaqueHead
from dft_plugin.kernels.weighing import by_scope
from dft_plugin.objectives import RowStatistic, Targets, Weigher

_ENTRY_EXPONENT = 7
"""An entry of a chunk's gradients in float16 is kept below 2 to this power, for products with the head's weights."""

_SUM_EXPONENT = 13
"""A sum over the tokens of a chunk is kept below 2 to this power: an eighth of what float16 holds, for what the head
does inside."""


def opaque(
    hidden_TD: Tensor,
    head: OpaqueHead,
    targets: Targets,
    objective: Weigher,
    *,
    needs: frozenset[RowStatistic] = frozenset(),
    scratch_bytes: int | None = None,
) -> KernelResult:
    """Call the head on chunks of tokens, score the logits of each, and make the gradients at once.

    The head keeps its own forward, hooks and gradients. It is called in the forward pass only, once for each chunk:
    where its weight is gathered for that time, it is not asked for again. Memory: one chunk of logits, a copy in
    float32 where they are of half precision, and the gradients of what is trained in the head. The sum is float32
    (float64 for float64 logits), whatever dtype the head returns.

    Args:
        hidden_TD: what the model gives to its head, only scored positions.
        head: the projection, and the parameters that it uses.
        targets: with ids in [0, V).
        objective: gives the weights.
        needs: costly statistics to return.
        scratch_bytes: bound on the logits of a chunk, counted in float32; None: see `budget.chunk_rows`.
    """
    T = hidden_TD.shape[0]
    if is_soft(objective):
        scratch_bytes = beside_another(hidden_TD.device.type, scratch_bytes)
    rows = chunk_rows(hidden_TD.device.type, 4 * head.vocab_size, scratch_bytes, tokens=T, weight_trained=False)
    calls = _Calls(
        head,
        objective,
        needs | objective.needs,
        _rounded_up(rows, head.row_multiple),
        autocast_dtype(hidden_TD.device.type),
    )
    trained = [parameter for parameter in head.parameters if parameter.requires_grad]
    return score(calls, targets, hidden_TD, *trained)


@dataclass(frozen=True)
class _Calls:
    """A `Scorer` that has a graph of one chunk at a time.

    Attributes:
        head: what is called.
        objective: gives the weights.
        needs: costly statistics to return.
        rows: tokens of a chunk.
        autocast: its dtype where the kernel was called, None where it is off.
    """

    head: OpaqueHead
    objective: Weigher
    needs: frozenset[RowStatistic]
    rows: int
    autocast: torch.dtype | None

    def __call__(self, targets: Targets, inputs: Inputs, wanted: tuple[bool, ...]) -> tuple[KernelResult, Gradients]:
        """Score all chunks."""

        def run(weigher: Callable[[slice], Weigher], wanted: tuple[bool, ...]) -> tuple[KernelResult, Gradients]:
            return self._run(targets, inputs, wanted, weigher)

        # The gradients are made here, in forward: those of a head that has chosen float32 for itself are made in it.
        with torch.autocast(targets.ids_T.device.type, enabled=False):
            return by_scope(run, self.objective, targets, wanted, twice=any(wanted[1:]))

    def _run(
        self, targets: Targets, inputs: Inputs, wanted: tuple[bool, ...], weigher: Callable[[slice], Weigher]
    ) -> tuple[KernelResult, Gradients]:
        hidden_TD, *trained = [tensor for tensor in inputs if tensor is not None]
        grads = Gradients.like(inputs, wanted, hidden_TD.dtype)
        parts: list[KernelResult] = []
        for start in range(0, max(hidden_TD.shape[0], 1), self.rows):
            chunk = slice(start, start + self.rows)
            with torch.set_grad_enabled(any(wanted)):
                hidden_CD = hidden_TD[chunk].detach().requires_grad_(wanted[0])
                part = self._score(hidden_CD, targets[chunk], weigher(chunk))
            if any(wanted):
                self._add_chunk_(grads, chunk, part, [hidden_CD, *trained])
            parts.append(replace(part, loss_sum=part.loss_sum.detach()))
        return join(parts), grads

    def _score(self, hidden_CD: Tensor, targets: Targets, objective: Weigher) -> KernelResult:
        """Score one chunk, with a graph."""
        C = hidden_CD.shape[0]
        missing = _rounded_up(C, self.head.row_multiple) - C
        if missing:
            # Rows of zeros, which no target asks for.
            hidden_CD = torch.cat([hidden_CD, hidden_CD.new_zeros(missing, hidden_CD.shape[1])])
        with torch.autocast(hidden_CD.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            logits_CV = self.head.project(hidden_CD)
        logits_CV = self.head.transform(logits_CV.to(accumulation_dtype(logits_CV.dtype)))
        kept_C = torch.arange(C, device=logits_CV.device)
        if is_soft(objective):
            targets = replace(targets, reference=distribution_of(objective, targets).held())
        score_chunk = score_logits_ if may_overwrite(logits_CV) else score_logits
        return score_chunk(logits_CV, kept_C, targets, objective, needs=self.needs)

    def _add_chunk_(self, grads: Gradients, chunk: slice, part: KernelResult, inputs: Sequence[Tensor]) -> None:
        """Add what a chunk gives to the gradients that are wanted."""
        wanted = [index for index, grad in enumerate(grads.of) if grad is not None]
        scale = self._loss_scale(part, inputs) if part.weight_T.numel() else None
        found: Sequence[Tensor] = torch.autograd.grad(
            part.loss_sum, [inputs[index] for index in wanted], scale, allow_unused=True, materialize_grads=True
        )
        if scale is not None:
            grads.factor_T1[chunk] = 1 / scale
        for index, gradient in zip(wanted, found, strict=True):
            total = grads.of[index]
            assert total is not None
            if index == 0:
                total[chunk] = gradient
            else:
                grads.add_(index, gradient if scale is None else gradient.to(total.dtype) / scale)

    def _loss_scale(self, part: KernelResult, inputs: Sequence[Tensor]) -> Tensor | None:
        """Return the power of two at which a chunk's gradients fill float16, or None where no float16 is.

        That of a trainer comes too late: what is lost on the way through the head is lost.
        """
        if torch.float16 not in (self.autocast, inputs[0].dtype, *(tensor.dtype for tensor in self.head.parameters)):
            return None
        largest_C = part.weight_T.abs() * part.rows.one_minus_p_T * abs(self.head.transform.scale)
        if part.soft_T is not None:
            largest_C = largest_C + part.soft_T.abs() * abs(self.head.transform.scale)
        exponent = torch.frexp(largest_C.max()).exponent - _ENTRY_EXPONENT
        if len(inputs) > 1:
            # Trained: what a token adds to a weight is bounded by its gradient times its hidden state.
            bound = (largest_C * torch.linalg.vector_norm(inputs[0].detach(), dim=1, dtype=largest_C.dtype)).sum()
            exponent = torch.maximum(exponent, torch.frexp(bound).exponent - _SUM_EXPONENT)
        return torch.ldexp(torch.ones_like(part.loss_sum), -exponent.clamp(min=-100))


def _rounded_up(rows: int, multiple: int) -> int:
    """Rows to call the head with; where it matters, none are as good as no call."""
    return rows if multiple == 1 else max(-(-rows // multiple), 1) * multiple
