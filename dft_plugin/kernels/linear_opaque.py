"""Token loss behind a head that can be called but not read (DoRA, quantised, tensor-parallel).

Shapes: T scored tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dft_plugin.kernels.budget import chunk_rows
from dft_plugin.kernels.logits import may_overwrite, score_logits, score_logits_
from dft_plugin.kernels.rows import concatenate
from dft_plugin.kernels.softmax import accumulation_dtype
from dft_plugin.kernels.types import KernelResult, OpaqueHead, refuse_second_derivative
from dft_plugin.objectives import Objective, Rows, RowStatistic


def opaque(
    hidden_TD: Tensor,
    head: OpaqueHead,
    targets_T: Tensor,
    objective: Objective,
    *,
    needs: frozenset[RowStatistic] = frozenset(),
    scratch_bytes: int | None = None,
) -> KernelResult:
    """Call the head on chunks of tokens, score the logits of each, and make the gradients at once.

    The head keeps its own forward, hooks and gradients. It is called in the forward pass only, once for each chunk:
    where its weight is gathered for that time, it is not asked for again. Memory: one chunk of logits, a copy in
    float32 where they are of half precision, and the gradients of what is trained in the head.

    Args:
        hidden_TD: what the model gives to its head, only scored positions.
        head: the projection, and the parameters that it uses.
        targets_T: int64 targets in [0, V).
        objective: gives the weights.
        needs: costly statistics to return.
        scratch_bytes: bound on the logits of a chunk, counted in float32; None: see `budget.chunk_rows`.
    """
    step = chunk_rows(
        hidden_TD.device.type, 4 * head.vocab_size, scratch_bytes, tokens=hidden_TD.shape[0], weight_trained=False
    )
    step = -(-step // head.row_multiple) * head.row_multiple
    run = _Run(head, objective, needs, step, torch.is_grad_enabled())
    trained = [parameter for parameter in head.parameters if parameter.requires_grad]
    loss_sum, weight_T, *rows = _Opaque.apply(run, targets_T, hidden_TD, *trained)  # type: ignore[no-untyped-call]
    return KernelResult(loss_sum, Rows(*rows), weight_T)


@dataclass(frozen=True)
class _Run:
    """What is constant over the chunks of one call."""

    head: OpaqueHead
    objective: Objective
    needs: frozenset[RowStatistic]
    step: int
    with_grad: bool

    def score(self, hidden_CD: Tensor, targets_C: Tensor) -> KernelResult:
        """Score one chunk, with a graph."""
        C = hidden_CD.shape[0]
        missing = -C % self.head.row_multiple
        if missing:
            # Rows of zeros, which no target asks for.
            hidden_CD = torch.cat([hidden_CD, hidden_CD.new_zeros(missing, hidden_CD.shape[1])])
        logits_CV = self.head.project(hidden_CD)
        logits_CV = self.head.transform(logits_CV.to(accumulation_dtype(logits_CV.dtype)))
        kept_C = torch.arange(C + missing, device=logits_CV.device) < C
        score = score_logits_ if may_overwrite(logits_CV) else score_logits
        return score(logits_CV, kept_C, targets_C, self.objective, needs=self.needs)


class _Opaque(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: _Run, targets_T: Tensor, hidden_TD: Tensor, *trained: Tensor
    ) -> tuple[Tensor | None, ...]:
        wanted = tuple(run.with_grad and need for need in ctx.needs_input_grad[2:])
        result, ctx.grads = _sweep(run, targets_T, (hidden_TD, *trained), wanted)
        ctx.run, ctx.wanted = run, wanted
        ctx.save_for_backward(targets_T, hidden_TD, *trained)
        rows = result.rows
        outputs = (
            result.weight_T,
            rows.logp_T,
            rows.one_minus_p_T,
            rows.is_top1_T,
            rows.entropy_T,
            rows.sum_p_squared_T,
        )
        ctx.mark_non_differentiable(*[output for output in outputs if output is not None])
        return result.loss_sum, *outputs

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        grads, ctx.grads = ctx.grads, None
        targets_T, *inputs = ctx.saved_tensors
        if grads is None:
            grads = _sweep(ctx.run, targets_T, inputs, ctx.wanted)[1]
        scaled = (
            None if grad is None else grad.mul_(upstream).to(tensor.dtype)
            for grad, tensor in zip(grads, inputs, strict=True)
        )
        return None, None, *scaled


def _sweep(
    run: _Run, targets_T: Tensor, inputs: Sequence[Tensor], wanted: tuple[bool, ...]
) -> tuple[KernelResult, list[Tensor | None]]:
    """Score all chunks. Returns the result, detached, and the gradients of `inputs` that are wanted."""
    hidden_TD, *trained = inputs
    grads: list[Tensor | None] = [
        torch.zeros_like(tensor, dtype=accumulation_dtype(tensor.dtype)) if want else None
        for tensor, want in zip(inputs, wanted, strict=True)
    ]
    parts: list[KernelResult] = []
    for start in range(0, max(hidden_TD.shape[0], 1), run.step):
        chunk = slice(start, start + run.step)
        with torch.set_grad_enabled(any(wanted)):
            hidden_CD = hidden_TD[chunk].detach().requires_grad_(wanted[0])
            part = run.score(hidden_CD, targets_T[chunk])
        if any(wanted):
            _add_gradients(grads, chunk, part.loss_sum, [hidden_CD, *trained])
        parts.append(KernelResult(part.loss_sum.detach(), part.rows, part.weight_T))
    loss_sum = torch.stack([part.loss_sum for part in parts]).sum()
    rows, weight_T = concatenate([part.rows for part in parts]), torch.cat([part.weight_T for part in parts])
    return KernelResult(loss_sum, rows, weight_T), grads


def _add_gradients(grads: list[Tensor | None], chunk: slice, loss_sum: Tensor, inputs: list[Tensor]) -> None:
    wanted = [index for index, grad in enumerate(grads) if grad is not None]
    found: Sequence[Tensor | None] = torch.autograd.grad(loss_sum, [inputs[index] for index in wanted], allow_unused=True)
    for index, gradient in zip(wanted, found, strict=True):
        total = grads[index]
        assert total is not None
        if gradient is None:
            continue
        if index == 0:
            total[chunk] = gradient
        else:
            total += gradient
