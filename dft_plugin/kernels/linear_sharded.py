"""Linear layer and token loss in one, behind a head whose vocabulary is split over the ranks of a process group.

Equal to `chunked` on the concatenated rows of all ranks, without ever gathering rows or logits. The softmax over
ranks is Megatron-LM's vocabulary-parallel cross-entropy (arXiv 1909.08053, section 3). Shapes: T scored tokens,
C tokens of a chunk, D hidden size, V vocabulary, L rows of it on this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dft_plugin.kernels.budget import chunk_rows
from dft_plugin.kernels.gemm import compute_dtype

# Names that `chunked` keeps to itself: the chunk's GEMMs and the sums of their gradients are the same here.
from dft_plugin.kernels.linear_chunked import _cast, _Gradients, _Projection, _Run
from dft_plugin.kernels.rows import concatenate, weighted_sum
from dft_plugin.kernels.shard import ShardedHead, VocabShard
from dft_plugin.kernels.softmax import (
    Scored,
    accumulation_dtype,
    exponential_,
    log_probability,
    sum_e_y_,
    sum_squares,
    transform_,
)
from dft_plugin.kernels.types import KernelResult, refuse_second_derivative
from dft_plugin.objectives import Objective, Rows, RowStatistic


def vocab_parallel(
    hidden_TD: Tensor,
    head: ShardedHead,
    targets_T: Tensor,
    objective: Objective,
    *,
    needs: frozenset[RowStatistic] = frozenset(),
    scratch_bytes: int | None = None,
) -> KernelResult:
    """Score hidden states chunk by chunk, each rank against its own rows; a collective of the shard's group.

    Per chunk one all-reduce of the maximum [C] and one of the sums [2 to 4, C]: the target's logit, the sum of
    exponentials without the target, and what `needs` asks for. Gradients are made in the forward pass, as in
    `chunked`.

    Every rank passes the same hidden states, targets, objective and options (the dtype and autocast too), and gets
    the same loss sum, statistics and weights. The gradients that each rank's backward hands on, times its own
    upstream factor:

    - of `weight_LD` and `bias_L`: those of the local rows, complete;
    - of `hidden_TD`: the whole one, summed over the ranks already (one all-reduce for all tokens, in the dtype of
      `hidden_TD`). It is right where every rank goes on to compute the same with it. Whatever stands before the head
      and sums again would count it once for each rank: leave out Megatron's `copy_to_tensor_model_parallel_region`,
      gather a sequence-parallel input with `tensor_parallel_output_grad=False`, and take a DTensor's local part with
      `grad_placements=[Replicate()]` (its default for a replicated one).

    A second backward over a retained graph recomputes, so all ranks must run it. A rank's rows may be frozen or
    trained; whether `hidden_TD` requires grad, and grad mode, must be the same on all.

    Args:
        hidden_TD: replicated on all ranks, only scored positions.
        head: this rank's rows.
        targets_T: int64 targets in [0, V), replicated.
        objective: gives the weights.
        needs: costly statistics to return.
        scratch_bytes: bound on the local logits of a chunk on the rank with the most rows (at least 64 tokens).
    """
    run = _ShardRun(
        transform=head.transform,
        objective=objective,
        needs=needs | objective.needs,
        scratch_bytes=scratch_bytes,
        compute_dtype=compute_dtype(head.weight_LD),
        with_grad=torch.is_grad_enabled(),
        shard=head.shard,
    )
    loss_sum, weight_T, *rows = _VocabParallel.apply(  # type: ignore[no-untyped-call]
        run, targets_T, hidden_TD, head.weight_LD, head.bias_L
    )
    return KernelResult(loss_sum, Rows(*rows), weight_T)


@dataclass(frozen=True)
class _ShardRun(_Run):
    """What is constant over the chunks of one call."""

    shard: VocabShard

    def reduced(self, tensor: Tensor, how: str = "SUM") -> Tensor:
        """Take the sum or the maximum (`MAX`) over the ranks, in place where the tensor is contiguous."""
        tensor = tensor.contiguous()
        if tensor.numel():
            # Named, since a torch without distributed has no ReduceOp to import.
            dist.all_reduce(tensor, getattr(dist.ReduceOp, how), group=self.shard.group)
        return tensor


class _VocabParallel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: _ShardRun, targets_T: Tensor, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
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
        # Handed over, not copied, and made again by a second backward, as in `chunked`.
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
    run: _ShardRun, targets_T: Tensor, inputs: Any, wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Rows, list[Tensor | None]]:
    """Score all chunks. Returns the sum, the weights, the statistics, and the gradients of `inputs`."""
    hidden_TD, weight_LD, bias_L = inputs
    dtype = run.compute_dtype
    projection = _Projection(weight_LD.to(dtype), _cast(bias_L, dtype), None)
    grads = _Gradients.like((*inputs, None, None), (*wanted, False, False))
    columns_T = targets_T - run.shard.first_row
    T = hidden_TD.shape[0]
    # The same on all ranks, or their collectives would not meet.
    row_bytes = max(run.shard.rows) * dtype.itemsize
    step = chunk_rows(hidden_TD.device.type, row_bytes, run.scratch_bytes, tokens=T, weight_trained=True)
    buffer_CL = projection.weight_VD.new_empty(min(step, T), weight_LD.shape[0])
    loss_sum = hidden_TD.new_zeros((), dtype=accumulation_dtype(dtype))
    weights: list[Tensor] = []
    rows: list[Rows] = []
    with torch.autocast(hidden_TD.device.type, enabled=False):
        for start in range(0, max(T, 1), step):
            chunk = slice(start, min(start + step, T))
            hidden_CD = hidden_TD[chunk].to(dtype)
            logits_CL = projection.into(buffer_CL[: hidden_CD.shape[0]], hidden_CD, None)
            scored = _score_shard_(run, logits_CL, columns_T[chunk])
            chunk_sum, weight_C = weighted_sum(run.objective, scored.rows)
            loss_sum += chunk_sum
            weights.append(weight_C)
            rows.append(scored.rows)
            factor_C1 = (weight_C * scored.inverse_norm_T)[:, None]
            grads.add(projection, chunk, logits_CL, factor_C1, hidden_CD, None)
    if grads.hidden_TD is not None:
        grads.hidden_TD = run.reduced(grads.hidden_TD)
    return loss_sum, torch.cat(weights), concatenate(rows), grads.as_list()[:3]


def _score_shard_(run: _ShardRun, logits_CL: Tensor, columns_C: Tensor) -> Scored:
    """Do what `softmax.score_block_` does, with maximum and sums over all ranks.

    Args:
        run: the transform, the needs, the group.
        logits_CL: raw logits of the local rows; overwritten with their unnormalised gradient.
        columns_C: columns of the targets in it; outside [0, L) where another rank holds them.
    """
    C, L = logits_CL.shape
    x_CL = logits_CL.to(accumulation_dtype(logits_CL.dtype))
    slope_CL = transform_(x_CL, run.transform)
    if not L:
        # A rank without rows takes part with one that is impossible.
        x_CL, slope_CL = x_CL.new_full((C, 1), -torch.inf), None
    here_C1 = ((columns_C >= 0) & (columns_C < L))[:, None]
    column_C1 = columns_C.clamp(0, x_CL.shape[1] - 1)[:, None]
    x_target_C1 = torch.where(here_C1, x_CL.gather(1, column_C1), 0.0)
    max_C1 = run.reduced(x_CL.amax(1, keepdim=True), "MAX")

    y_CL = x_CL.sub_(max_C1)
    _put_(y_CL, column_C1, here_C1, torch.full_like(max_C1, -torch.inf))
    e_CL = exponential_(y_CL.clone() if "entropy" in run.needs else y_CL)
    terms = {"x_target": x_target_C1, "rest": e_CL.sum(1, keepdim=True)}
    if "entropy" in run.needs:
        terms["e_y"] = sum_e_y_(e_CL, y_CL)
    if "sum_p_squared" in run.needs:
        terms["squares"] = sum_squares(e_CL)
    sums = dict(zip(terms, run.reduced(torch.stack([*terms.values()])).unbind(), strict=True))
    rows, norm_C1 = _statistics(max_C1, sums)

    _put_(e_CL, column_C1, here_C1, -sums["rest"])
    if slope_CL is not None:
        e_CL.mul_(slope_CL)
    inverse_norm_C1 = run.transform.scale / norm_C1
    if e_CL is not logits_CL:
        # R can exceed the range of float16, so the half-precision buffer is normalised.
        logits_CL.copy_(e_CL.mul_(inverse_norm_C1))
        inverse_norm_C1 = torch.ones_like(inverse_norm_C1)
    return Scored(rows, inverse_norm_C1[:, 0])


def _statistics(max_C1: Tensor, sums: dict[str, Tensor]) -> tuple[Rows, Tensor]:
    """Return the rows, and the sum of all exponentials, from what was reduced over the ranks."""
    x_target_C1, rest_C1 = sums["x_target"], sums["rest"]
    y_target_C1 = x_target_C1 - max_C1
    e_target_C1 = exponential_(y_target_C1.clone())
    norm_C1 = rest_C1 + e_target_C1
    entropy_C = squares_C = None
    if "e_y" in sums:
        entropy_C = (norm_C1.log() - (sums["e_y"] + sum_e_y_(e_target_C1, y_target_C1)) / norm_C1)[:, 0]
    if "squares" in sums:
        squares_C = ((sums["squares"] + e_target_C1.square()) / norm_C1.square())[:, 0]
    rows = Rows(
        logp_T=log_probability(x_target_C1, max_C1, e_target_C1, rest_C1)[:, 0],
        one_minus_p_T=(rest_C1 / norm_C1)[:, 0],
        is_top1_T=(x_target_C1 >= max_C1)[:, 0],
        entropy_T=entropy_C,
        sum_p_squared_T=squares_C,
    )
    return rows, norm_C1


def _put_(e_CL: Tensor, column_C1: Tensor, here_C1: Tensor, value_C1: Tensor) -> None:
    """Write a value into the column of each target that is here; without waiting for the device."""
    e_CL.scatter_(1, column_C1, torch.where(here_C1, value_C1, e_CL.gather(1, column_C1)))
