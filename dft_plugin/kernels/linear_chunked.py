"""Linear layer and token loss in one, over chunks of tokens, with the gradient made in the forward pass.

Equal to this, without ever holding [T, V]::

    logits_TV = transform(hidden_TD @ weight_VD.T + bias_V + input_TR @ weight_VR.T)
    logp_T = logits_TV.float().log_softmax(-1).gather(1, targets_T[:, None])[:, 0]
    loss_sum = -(objective.weight(rows).detach() * logp_T).sum()

Shapes: T scored tokens, C tokens of a chunk, D hidden size, V vocabulary, R LoRA rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dft_plugin.kernels.budget import chunk_rows
from dft_plugin.kernels.gemm import compute_dtype
from dft_plugin.kernels.rows import concatenate, score_rows_, weighted_sum
from dft_plugin.kernels.softmax import accumulation_dtype
from dft_plugin.kernels.types import Head, KernelResult, Transform, refuse_second_derivative
from dft_plugin.objectives import Objective, Rows, RowStatistic

_BLOCK_ROWS = 8192
"""Rows of a weight's gradient that are added at a time where a product and a sum have different dtypes."""


def chunked(
    hidden_TD: Tensor,
    head: Head,
    targets_T: Tensor,
    objective: Objective,
    *,
    needs: frozenset[RowStatistic] = frozenset(),
    scratch_bytes: int | None = None,
) -> KernelResult:
    """Score hidden states chunk by chunk.

    1. project a chunk: one GEMM into a buffer [C, V] that is used again for every chunk;
    2. turn the buffer into p, in place, and take the statistics (`score_rows_`);
    3. ask the objective for w, which is detached: the gradient on the logits is w * (p - onehot), and
       nothing of it depends on what happens downstream but one scalar factor;
    4. so make the gradients now: one GEMM for the hidden states, one for a trained weight;
    5. backward multiplies them by the upstream factor.

    Two GEMMs with a frozen head and three with a trained one; kernels that recompute the logits
    in backward pay three and four. Memory beyond inputs and gradients: C * V elements, with C chosen so
    that they fit `scratch_bytes` (`budget.chunk_rows`).

    Composes with autocast (GEMMs in its dtype), with gradient checkpointing around the model, with FSDP2
    and ZeRO-3 when called inside the head's forward, and with a second backward over a retained graph,
    which recomputes.

    Args:
        hidden_TD: what the model gives to its head, only scored positions.
        head: weight, bias, transform, LoRA branch.
        targets_T: int64 targets in [0, V).
        objective: gives the weights.
        needs: costly statistics to return.
        scratch_bytes: bound on the buffer of logits; None: see `budget.chunk_rows`.
    """
    low_rank = head.low_rank
    run = _Run(
        transform=head.transform,
        objective=objective,
        needs=needs | objective.needs,
        scratch_bytes=scratch_bytes,
        compute_dtype=compute_dtype(head.weight_VD),
        with_grad=torch.is_grad_enabled(),
    )
    loss_sum, weight_T, *rows = _Chunked.apply(  # type: ignore[no-untyped-call]
        run,
        targets_T,
        hidden_TD,
        head.weight_VD,
        head.bias_V,
        low_rank.input_TR if low_rank else None,
        low_rank.weight_VR if low_rank else None,
    )
    return KernelResult(loss_sum, Rows(*rows), weight_T)


@dataclass(frozen=True)
class _Run:
    """What is constant over the chunks of one call."""

    transform: Transform
    objective: Objective
    needs: frozenset[RowStatistic]
    scratch_bytes: int | None
    compute_dtype: torch.dtype
    with_grad: bool


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: _Run, targets_T: Tensor, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = tuple(run.with_grad and need for need in ctx.needs_input_grad[2:])
        loss_sum, weight_T, rows, grads = _sweep(run, targets_T, inputs, wanted)
        ctx.run, ctx.wanted, ctx.grads = run, wanted, grads
        ctx.save_for_backward(targets_T, *inputs)
        outputs = (weight_T, rows.logp_T, rows.one_minus_p_T, rows.is_top1_T, rows.entropy_T, rows.sum_p_squared_T)
        ctx.mark_non_differentiable(*[output for output in outputs if output is not None])
        return loss_sum, *outputs

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        # The gradients are handed over, not copied: an optimizer step may want their memory. A second
        # backward over the same graph makes them again.
        grads, ctx.grads = ctx.grads, None
        targets_T, *inputs = ctx.saved_tensors
        if grads is None:
            grads = _sweep(ctx.run, targets_T, inputs, ctx.wanted)[3]
        scaled = (
            None if grad is None else grad.mul_(upstream).to(tensor.dtype)
            for grad, tensor in zip(grads, inputs, strict=True)
        )
        return None, None, *scaled


def _sweep(
    run: _Run, targets_T: Tensor, inputs: Sequence[Tensor | None], wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Rows, list[Tensor | None]]:
    """Score all chunks. Returns the sum, the weights, the statistics, and the gradients of `inputs`."""
    hidden_TD, weight_VD, bias_V, input_TR, weight_VR = inputs
    assert hidden_TD is not None
    assert weight_VD is not None
    dtype = run.compute_dtype
    projection = _Projection(weight_VD.to(dtype), _cast(bias_V, dtype), _cast(weight_VR, dtype))
    grads = _Gradients.like(inputs, wanted)
    T, V = hidden_TD.shape[0], weight_VD.shape[0]
    row_bytes = V * dtype.itemsize
    step = chunk_rows(weight_VD.device.type, row_bytes, run.scratch_bytes, tokens=T, weight_trained=wanted[1])
    buffer_CV = projection.weight_VD.new_empty(min(step, T), V)
    loss_sum = hidden_TD.new_zeros((), dtype=accumulation_dtype(dtype))
    weights: list[Tensor] = []
    rows: list[Rows] = []
    with torch.autocast(hidden_TD.device.type, enabled=False):
        for start in range(0, max(T, 1), step):
            chunk = slice(start, min(start + step, T))
            hidden_CD = hidden_TD[chunk].to(dtype)
            input_CR = None if input_TR is None else input_TR[chunk].to(dtype)
            logits_CV = projection.into(buffer_CV[: hidden_CD.shape[0]], hidden_CD, input_CR)
            scored = score_rows_(logits_CV, targets_T[chunk], run.transform, run.needs)
            chunk_sum, weight_C = weighted_sum(run.objective, scored.rows)
            loss_sum += chunk_sum
            weights.append(weight_C)
            rows.append(scored.rows)
            factor_C1 = (weight_C * scored.inverse_norm_T)[:, None]
            grads.add(projection, chunk, logits_CV, factor_C1, hidden_CD, input_CR)
    return loss_sum, torch.cat(weights), concatenate(rows), grads.as_list()


@dataclass(frozen=True)
class _Projection:
    """The tensors of the head in the dtype of the GEMMs."""

    weight_VD: Tensor
    bias_V: Tensor | None
    weight_VR: Tensor | None

    def into(self, out_CV: Tensor, hidden_CD: Tensor, input_CR: Tensor | None) -> Tensor:
        if self.bias_V is None:
            torch.mm(hidden_CD, self.weight_VD.t(), out=out_CV)
        else:
            # One rounding of half-precision logits, as in `torch.nn.functional.linear`.
            torch.addmm(self.bias_V, hidden_CD, self.weight_VD.t(), out=out_CV)
        if input_CR is not None and self.weight_VR is not None:
            out_CV.addmm_(input_CR, self.weight_VR.t())
        return out_CV


@dataclass
class _Gradients:
    """Gradients of the inputs, before the upstream factor. None where nobody wants one.

    What is summed over tokens is kept in float32 (float64); what belongs to one token is not.
    """

    hidden_TD: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None
    input_TR: Tensor | None
    weight_VR: Tensor | None

    @classmethod
    def like(cls, inputs: Sequence[Tensor | None], wanted: tuple[bool, ...]) -> _Gradients:
        per_token = (True, False, False, True, False)
        return cls(
            *(
                torch.zeros_like(tensor, dtype=None if token else accumulation_dtype(tensor.dtype))
                if tensor is not None and want
                else None
                for tensor, want, token in zip(inputs, wanted, per_token, strict=True)
            )
        )

    def as_list(self) -> list[Tensor | None]:
        return [self.hidden_TD, self.weight_VD, self.bias_V, self.input_TR, self.weight_VR]

    def add(
        self,
        projection: _Projection,
        chunk: slice,
        grad_CV: Tensor,
        factor_C1: Tensor,
        hidden_CD: Tensor,
        input_CR: Tensor | None,
    ) -> None:
        """Add what a chunk gives; `grad_CV * factor_C1` is the gradient on its raw logits.

        The factor stays in float32: in half precision it would be rounded, and a small w become zero.
        """
        dtype = grad_CV.dtype
        if self.hidden_TD is not None:
            out_CD = self.hidden_TD[chunk]
            torch.mul(_product(grad_CV, projection.weight_VD, out_CD), factor_C1, out=out_CD)
        if self.weight_VD is not None:
            _add_product_(self.weight_VD, grad_CV.t(), (hidden_CD * factor_C1).to(dtype))
        if self.bias_V is not None:
            self.bias_V += (factor_C1.to(dtype).t() @ grad_CV)[0]
        if self.input_TR is not None and projection.weight_VR is not None:
            torch.mul(grad_CV @ projection.weight_VR, factor_C1, out=self.input_TR[chunk])
        if self.weight_VR is not None and input_CR is not None:
            _add_product_(self.weight_VR, grad_CV.t(), (input_CR * factor_C1).to(dtype))


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
        return
    for start in range(0, total.shape[0], _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        total[rows] += left[rows] @ right


def _product(left: Tensor, right: Tensor, place: Tensor) -> Tensor:
    """Multiply, in `place` if it has the dtype of the factors."""
    return torch.mm(left, right, out=place) if place.dtype == left.dtype else left @ right


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)
