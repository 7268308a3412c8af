"""Token loss on logits that exist already, with one copy of them at most.

Equal to this, without a float32 copy of the logits::

    logp_T = transform(logits_NV[kept_N]).float().log_softmax(-1).gather(1, targets_T[:, None])[:, 0]
    loss_sum = -(objective.weight(rows).detach() * logp_T).sum()

Shapes: N positions, T scored ones, B positions of a block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dft_plugin.kernels.base import KernelResult, Transform
from dft_plugin.kernels.rows import accumulation_dtype, concatenate, score_rows_, weighted_sum
from dft_plugin.objectives import Objective, Rows, RowStatistic

_BLOCK_ELEMENTS = 1 << 22
"""Elements of a working block: 16 MB of float32, whatever the number of tokens."""


def score_logits(
    logits_NV: Tensor,
    kept_N: Tensor,
    targets_T: Tensor,
    objective: Objective,
    *,
    needs: frozenset[RowStatistic] = frozenset(),
) -> KernelResult:
    """Score logits as the model returns them.

    Forward reads the logits once, in blocks of 16 MB of float32; backward reads them again and writes the
    gradient. Memory beyond the logits: their gradient, and 16 MB. The logits themselves stay
    as they are, for metrics.

    Args:
        logits_NV: transformed logits of any float dtype.
        kept_N: bool, which positions are scored.
        targets_T: int64 targets of the kept positions, in [0, V).
        objective: gives the weights.
        needs: costly statistics to return.
    """
    loss_sum, weight_T, *rows = _ScoreLogits.apply(  # type: ignore[no-untyped-call]
        logits_NV, kept_N.nonzero()[:, 0], targets_T, objective, needs | objective.needs
    )
    return KernelResult(loss_sum, Rows(*rows), weight_T)


class _ScoreLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_NV: Tensor,
        index_T: Tensor,
        targets_T: Tensor,
        objective: Objective,
        needs: frozenset[RowStatistic],
    ) -> tuple[Tensor | None, ...]:
        rows = concatenate(
            [
                score_rows_(block_BV, targets_T[block], Transform(), needs).rows
                for block, block_BV in _blocks(logits_NV, index_T)
            ]
        )
        loss_sum, weight_T = weighted_sum(objective, rows)
        ctx.save_for_backward(logits_NV, index_T, targets_T, weight_T)
        outputs = (weight_T, rows.logp_T, rows.one_minus_p_T, rows.is_top1_T, rows.entropy_T, rows.sum_p_squared_T)
        ctx.mark_non_differentiable(*[output for output in outputs if output is not None])
        return loss_sum, *outputs

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        logits_NV, index_T, targets_T, weight_T = ctx.saved_tensors
        grad_NV = torch.zeros_like(logits_NV)
        for block, block_BV in _blocks(logits_NV, index_T):
            scored = score_rows_(block_BV, targets_T[block], Transform())
            factor_B = weight_T[block] * scored.inverse_norm_T * upstream
            grad_NV[index_T[block]] = block_BV.mul_(factor_B[:, None]).to(grad_NV.dtype)
        return grad_NV, None, None, None, None


def _blocks(logits_NV: Tensor, index_T: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield `(slice of T, float copy of its logits)`; one empty block if nothing is scored."""
    step = max(1, _BLOCK_ELEMENTS // max(logits_NV.shape[1], 1))
    dtype = accumulation_dtype(logits_NV.dtype)
    for start in range(0, max(index_T.numel(), 1), step):
        block = slice(start, start + step)
        # index_select copies, so the working block may be overwritten.
        yield block, logits_NV.index_select(0, index_T[block]).to(dtype)
