"""Linear layer and token loss in one, behind a head whose vocabulary is split over the ranks of a process group.

Equal to `chunked` on the concatenated rows of all ranks, without ever gathering rows or logits. The softmax over
ranks is Megatron-LM's vocabulary-parallel cross-entropy (arXiv 1909.08053, section 3). Shapes: T scored tokens,
C tokens of a chunk, D hidden size, V vocabulary, L rows of it on this rank.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from dft_plugin.errors import PluginError
from dft_plugin.kernels.added import block_functions_in
from dft_plugin.kernels.budget import chunk_rows
from dft_plugin.kernels.gemm import compute_dtype
from dft_plugin.kernels.shard import ShardedHead, VocabShard
from dft_plugin.kernels.softmax import (
    Scored,
    Sums,
    accumulation_dtype,
    exponential_,
    store_,
    sum_e_y_,
    sum_squares,
    transform_,
)
from dft_plugin.kernels.sweep import Sweep, score
from dft_plugin.kernels.terms import is_soft
from dft_plugin.kernels.types import KernelResult, Transform
from dft_plugin.objectives import RowStatistic, Targets, Weigher


def vocab_parallel(
    hidden_TD: Tensor,
    head: ShardedHead,
    targets: Targets,
    objective: Weigher,
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
      `hidden_TD` or of the GEMMs, whichever is wider). It is right where every rank goes on to compute the
      same with it. Whatever stands before the head and sums again would count it once for each rank: leave out
      Megatron's `copy_to_tensor_model_parallel_region`, gather a sequence-parallel input with
      `tensor_parallel_output_grad=False`, and take a DTensor's local part with `grad_placements=[Replicate()]` (its
      default for a replicated one).

    A second backward over a retained graph recomputes, so all ranks must run it. A rank's rows may be frozen or
    trained; whether `hidden_TD` requires grad, and grad mode, must be the same on all.

    Args:
        hidden_TD: replicated on all ranks, only scored positions.
        head: this rank's rows.
        targets: with ids in [0, V), replicated.
        objective: gives the weights.
        needs: costly statistics to return.
        scratch_bytes: bound on the local logits of a chunk on the rank with the most rows (at least 64 tokens).
    """
    if is_soft(objective):
        raise PluginError(
            f"the objective {objective.name} reads a reference's whole distribution, which no rank holds where the "
            "vocabulary is split over ranks. Choose one that weighs by its probabilities, `prift` for one."
        )
    dtype = compute_dtype(head.weight_LD)
    score_ = partial(_score_shard_, shard=head.shard, transform=head.transform, needs=needs | objective.needs)
    sum_hidden = partial(_sum_hidden, shard=head.shard, dtype=torch.promote_types(dtype, hidden_TD.dtype))
    # The same on all ranks, or their collectives would not meet.
    rows = chunk_rows(
        hidden_TD.device.type,
        max(head.shard.rows) * dtype.itemsize,
        scratch_bytes,
        tokens=hidden_TD.shape[0],
        weight_trained=True,
    )
    # Twice on all ranks or none, though one may train its rows and another not.
    sweep = Sweep(objective, dtype, rows, score_, lambda wanted: True, sum_hidden)
    return score(sweep, targets, hidden_TD, head.weight_LD, head.bias_L, None, None)


def _sum_hidden(grad_TD: Tensor, *, shard: VocabShard, dtype: torch.dtype) -> Tensor:
    return _reduced(grad_TD.to(dtype), shard)


def _reduced(tensor: Tensor, shard: VocabShard, how: str = "SUM") -> Tensor:
    """Take the sum or the maximum (`MAX`) over the ranks, in place where the tensor is contiguous."""
    tensor = tensor.contiguous()
    if tensor.numel():
        # Named, since a torch without distributed has no ReduceOp to import.
        dist.all_reduce(tensor, getattr(dist.ReduceOp, how), group=shard.group)
    return tensor


def _score_shard_(
    logits_CL: Tensor,
    targets_C: Tensor,
    *,
    shard: VocabShard,
    transform: Transform,
    needs: frozenset[RowStatistic],
) -> Scored:
    """Do what `softmax.score_block_` does, with maximum and sums over all ranks.

    Args:
        logits_CL: raw logits of the local rows; overwritten with their unnormalised gradient.
        targets_C: int64 targets in [0, V).
        shard: the local rows, and the ranks that hold the others.
        transform: what the model does to raw logits.
        needs: costly statistics to compute as well.
    """
    C, L = logits_CL.shape
    x_CL = logits_CL.to(accumulation_dtype(logits_CL.dtype))
    slope_CL = transform_(x_CL, transform)
    if not L:
        # A rank without rows takes part with one that is impossible.
        x_CL, slope_CL = x_CL.new_full((C, 1), -torch.inf), None
    added = _added(needs, x_CL, targets_C, shard)
    columns_C = targets_C - shard.first_row
    here_C1 = ((columns_C >= 0) & (columns_C < L))[:, None]
    column_C1 = columns_C.clamp(0, x_CL.shape[1] - 1)[:, None]
    x_target_C1 = torch.where(here_C1, x_CL.gather(1, column_C1), 0.0)
    max_C1 = _reduced(x_CL.amax(1, keepdim=True), shard, "MAX")

    y_CL = x_CL.sub_(max_C1)
    _put_(y_CL, column_C1, here_C1, torch.full_like(max_C1, -torch.inf))
    e_CL = exponential_(y_CL.clone() if "entropy" in needs else y_CL)
    terms = [x_target_C1, e_CL.sum(1, keepdim=True)]
    if "entropy" in needs:
        terms.append(sum_e_y_(e_CL, y_CL))
    if "sum_p_squared" in needs:
        terms.append(sum_squares(e_CL))
    x_target_C1, rest_C1, *costly = _reduced(torch.stack(terms), shard).unbind()
    sums = Sums(
        max_C1,
        x_target_C1,
        rest_C1,
        e_y_T1=costly.pop(0) if "entropy" in needs else None,
        squares_T1=costly.pop(0) if "sum_p_squared" in needs else None,
    )
    rows, norm_C1 = sums.statistics()
    rows = replace(rows, added=added)

    _put_(e_CL, column_C1, here_C1, -rest_C1)
    if slope_CL is not None:
        e_CL.mul_(slope_CL)
    return Scored(rows, store_(logits_CL, e_CL, rest_C1, norm_C1)[:, 0] * transform.scale)


def _added(needs: frozenset[RowStatistic], x_CL: Tensor, targets_C: Tensor, shard: VocabShard) -> dict[str, Tensor]:
    """Combine what objectives add over the ranks."""
    missing = max(shard.rows) - x_CL.shape[1]
    if missing > 0:
        # As many columns on each rank, or what they give would not fit together.
        x_CL = torch.nn.functional.pad(x_CL, (0, missing), value=-torch.inf)
    made = {}
    for function in block_functions_in(needs, "a head that is split over ranks"):
        own = function(x_CL, targets_C).contiguous()
        parts = [own.new_empty(own.shape) for _ in shard.rows]
        dist.all_gather(parts, own, group=shard.group)
        made[function.name] = function.combine(torch.stack(parts))
    return made


def _put_(e_CL: Tensor, column_C1: Tensor, here_C1: Tensor, value_C1: Tensor) -> None:
    """Write a value into the column of each target that is here; without waiting for the device."""
    e_CL.scatter_(1, column_C1, torch.where(here_C1, value_C1, e_CL.gather(1, column_C1)))
