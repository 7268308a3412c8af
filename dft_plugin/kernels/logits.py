"""Token loss on logits that exist already, with one copy of them or none.

Equal to this, without a float32 copy of the logits::

    logp_T = transform(logits_NV[kept_N]).float().log_softmax(-1).gather(1, targets_T[:, None])[:, 0]
    loss_sum = -(objective.weight(rows).detach() * logp_T).sum()

Shapes: N positions, T scored ones, B positions of a block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dft_plugin.kernels.results import as_outputs, from_outputs, join, weigh
from dft_plugin.kernels.rows import block_rows, scale_rows
from dft_plugin.kernels.scoring import row_scorer, score_rows_
from dft_plugin.kernels.softmax import accumulation_dtype
from dft_plugin.kernels.terms import is_soft, score_softly_
from dft_plugin.kernels.types import IDENTITY, KernelResult, refuse_second_derivative
from dft_plugin.kernels.weighing import Fixed
from dft_plugin.objectives import RowStatistic, Targets, Weigher

_HALF_EXPONENT = 14
"""A row of gradients in half precision is kept below 2 to this power; float16 reaches 2 ** 16."""


def score_logits(
    logits_NV: Tensor,
    kept_N: Tensor,
    targets: Targets,
    objective: Weigher,
    *,
    needs: frozenset[RowStatistic] = frozenset(),
) -> KernelResult:
    """Score logits as the model returns them, and leave them as they are.

    Forward reads the logits once, block by block, and writes their gradient, which backward multiplies by the upstream
    factor. Memory beyond the logits: their gradient, and a block (2 MB of float32 on a CPU, or one row).

    Args:
        logits_NV: transformed logits of any float dtype.
        kept_N: which positions are scored: bool [N], or their int64 indices [T] in ascending order.
        targets: of the kept positions, with ids in [0, V).
        objective: gives the weights.
        needs: costly statistics to return.
    """
    run = _Run(_positions(kept_N, targets), targets, objective, needs | objective.needs)
    with_grad = torch.is_grad_enabled() and logits_NV.requires_grad
    outputs = _ScoreLogits.apply(logits_NV, run, with_grad)  # type: ignore[no-untyped-call]
    return from_outputs(outputs, objective)


def score_logits_(
    logits_NV: Tensor,
    kept_N: Tensor,
    targets: Targets,
    objective: Weigher,
    *,
    needs: frozenset[RowStatistic] = frozenset(),
) -> KernelResult:
    """Score logits that nobody reads again: forward overwrites them with their gradient.

    Memory beyond the logits: a block. Backward multiplies by the upstream factor, in place, so a graph can be used
    only once. Where the node that made the logits has saved them (tanh does), autograd itself refuses the
    backward pass; `may_overwrite` tells beforehand.

    Args:
        logits_NV: transformed logits of any float dtype, of a graph; overwritten.
        kept_N: which positions are scored: bool [N], or their int64 indices [T] in ascending order.
        targets: of the kept positions, with ids in [0, V).
        objective: gives the weights.
        needs: costly statistics to return.
    """
    run = _Run(_positions(kept_N, targets), targets, objective, needs | objective.needs)
    outputs = _OverwriteLogits.apply(logits_NV, run)  # type: ignore[no-untyped-call]
    return from_outputs(outputs, objective)


def _positions(kept_N: Tensor, targets: Targets) -> Tensor:
    """Where a mask is true; without a wait for the device if it is so everywhere, or indices are there already."""
    if kept_N.dtype != torch.bool:
        return kept_N
    if kept_N.numel() == len(targets):
        return torch.arange(kept_N.numel(), device=kept_N.device)
    return kept_N.nonzero()[:, 0]


_SAVE_NO_OUTPUT = frozenset(
    {"AddmmBackward0", "MmBackward0", "BmmBackward0", "AddBackward0", "SubBackward0", "MulBackward0", "DivBackward0"}
    | {"ToCopyBackward0", "CloneBackward0", "CatBackward0", "IndexSelectBackward0"}
)
"""Nodes of autograd whose backward does not read what they returned."""

_VIEWS = frozenset({"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "UnsqueezeBackward0"})
"""Nodes that return the memory of their input."""


def may_overwrite(logits: Tensor) -> bool:
    """Whether the backward pass of what made `logits` can do without them, as far as autograd's graph tells."""
    node = logits.grad_fn
    while node is not None and node.name() in _VIEWS:
        node = node.next_functions[0][0]
    return node is not None and node.name() in _SAVE_NO_OUTPUT and logits.is_contiguous()


@dataclass(frozen=True)
class _Run:
    """What to score: positions and targets of the scored rows."""

    index_T: Tensor
    targets: Targets
    objective: Weigher
    needs: frozenset[RowStatistic]


class _ScoreLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, run: _Run, with_grad: bool) -> tuple[Tensor | None, ...]:
        grad_NV = torch.empty_like(logits_NV) if with_grad else None
        result, factor_N1 = _sweep(run, logits_NV, grad_NV)
        ctx.run, ctx.handed_over = run, False
        # Saved, not kept on ctx: a checkpoint, as `opaque` has around it, lets go of nothing else.
        ctx.save_for_backward(logits_NV, grad_NV, factor_N1)
        return as_outputs(ctx, result)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        logits_NV, grad_NV, factor_N1 = ctx.saved_tensors
        if ctx.handed_over:
            # A second backward makes it again, as in `chunked`.
            grad_NV = torch.empty_like(logits_NV)
            _sweep(ctx.run, logits_NV, grad_NV)
        ctx.handed_over = True
        # Through `data`, or autograd would take that second backward for a mistake.
        return scale_rows(grad_NV.data, factor_N1 * upstream, grad_NV.dtype), None, None


class _OverwriteLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, run: _Run) -> tuple[Tensor | None, ...]:
        result, ctx.factor_N1 = _sweep(run, logits_NV, logits_NV)
        ctx.grad_NV = logits_NV.detach()
        return as_outputs(ctx, result)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        grad_NV, ctx.grad_NV = ctx.grad_NV, None
        if grad_NV is None:
            raise RuntimeError(
                "a second backward pass over the same logits: they were overwritten by their gradient, which the "
                "first has used up; a graph of score_logits_ serves once. Add up what is to be differentiated and go "
                "backward once, or keep the logits: dft_plugin.token_loss on the model's logits, or `with "
                "attachment.answering(want_logits=True)` around the call."
            )
        return scale_rows(grad_NV, ctx.factor_N1 * upstream, grad_NV.dtype), None


def _sweep(run: _Run, logits_NV: Tensor, grad_NV: Tensor | None) -> tuple[KernelResult, Tensor]:
    """Score all blocks.

    Args:
        run: what to score.
        logits_NV: read only, unless they are `grad_NV`, too.
        grad_NV: where the gradient goes, before its factors; None if nobody wants it.

    Returns:
        `(result, factor_N1)`: the gradient on the logits is what was written, times the factor, times the upstream
        factor. It is kept in the dtype of sums: multiplied into a float16 gradient before a loss scale is, a small
        one would make zeros of it.
    """
    (N, V), T = logits_NV.shape, run.index_T.numel()
    dtype = accumulation_dtype(logits_NV.dtype)
    factor_N1 = logits_NV.new_zeros(N, 1, dtype=dtype)
    keeps_dtype = row_scorer(logits_NV.device.type).keeps_dtype
    if keeps_dtype:
        dtype = logits_NV.dtype
    in_place = grad_NV is not None and grad_NV.dtype == dtype and T == N
    # What needs no buffer is scored whole.
    step = max(N, 1) if keeps_dtype and in_place else block_rows(logits_NV.device.type, V)
    # One for all blocks: an allocator that gives each its own may not find their memory again.
    buffer_BV = logits_NV.new_empty(0 if in_place else min(T, step), V, dtype=dtype)
    parts: list[KernelResult] = []
    at_once = run.objective if is_soft(run.objective) or run.objective.scope == "token" else Fixed()
    for block, positions in _blocks(N, run.index_T, step):
        rows_BV = logits_NV[positions]
        work_BV = grad_NV[positions] if grad_NV is not None and in_place else buffer_BV[: len(rows_BV)]
        if not in_place or grad_NV is not logits_NV:
            work_BV.copy_(rows_BV)
        part, factor_B, largest_B = _weigh_(work_BV, run.targets[block], at_once, run.needs)
        parts.append(part)
        if grad_NV is not None and grad_NV.dtype != dtype:
            factor_B = _fit_half_(work_BV, factor_B, largest_B)
        if grad_NV is not None and not in_place:
            _put_(grad_NV, positions, work_BV)
        factor_N1[positions, 0] = factor_B
    if grad_NV is not None:
        _clear_others_(grad_NV, run.index_T)
    result = join(parts)
    if run.objective.scope != "token":
        result = weigh(run.objective, result.rows, run.targets)
        factor_N1[run.index_T, 0] *= result.weight_T
    return result, factor_N1


def _weigh_(
    work_BV: Tensor, targets: Targets, objective: Weigher, needs: frozenset[RowStatistic]
) -> tuple[KernelResult, Tensor, Tensor]:
    """Score a block of logits, and overwrite it with its gradient.

    Returns:
        `(result, factor_B, largest_B)`: what its rows are to be multiplied by, and a bound on what they are then.
    """
    peak = 2.0**_HALF_EXPONENT
    if is_soft(objective):
        part, factor_B = score_softly_(work_BV, targets, objective, IDENTITY, needs, peak=peak)
        assert part.soft_T is not None
        return part, factor_B, part.weight_T * part.rows.one_minus_p_T + part.soft_T
    scored = score_rows_(work_BV, targets.ids_T, IDENTITY, needs, peak=peak)
    part = weigh(objective, scored.rows, targets)
    return part, part.weight_T * scored.inverse_norm_T, part.weight_T * scored.rows.one_minus_p_T


def _fit_half_(work_BV: Tensor, factor_B: Tensor, largest_B: Tensor) -> Tensor:
    """Multiply rows by their factors, up to powers of two, which round nothing: their largest entries fill float16.

    Args:
        work_BV: overwritten.
        factor_B: what the rows are to be multiplied by.
        largest_B: the largest entry of each product, that of the target.

    Returns:
        The powers of two, which are left to multiply.
    """
    exponent_B = torch.frexp(largest_B).exponent.clamp(min=-100) - _HALF_EXPONENT
    work_BV.mul_(torch.ldexp(factor_B, -exponent_B)[:, None])
    return torch.ldexp(torch.ones_like(factor_B), exponent_B)


def _put_(grad_NV: Tensor, positions: slice | Tensor, work_BV: Tensor) -> None:
    if isinstance(positions, slice):
        grad_NV[positions].copy_(work_BV)
    else:
        grad_NV[positions] = work_BV.to(grad_NV.dtype)


def _blocks(N: int, index_T: Tensor, step: int) -> Iterator[tuple[slice, slice | Tensor]]:
    """Yield `(slice of T, its positions in N)`; one empty block if nothing is scored."""
    T = index_T.numel()
    for start in range(0, max(T, 1), step):
        block = slice(start, min(start + step, T))
        yield block, block if T == N else index_T[block]


def _clear_others_(grad_NV: Tensor, index_T: Tensor) -> None:
    """Set the rows that are not in `index_T` to zero."""
    if index_T.numel() < grad_NV.shape[0]:
        others_N = torch.ones(grad_NV.shape[0], dtype=torch.bool, device=grad_NV.device)
        # Not by an assignment: the number would be copied to the device, and waited for.
        others_N.index_fill_(0, index_T, False)
        grad_NV.masked_fill_(others_N[:, None], 0.0)
