"""Rows of logits to statistics, and rows times factors, whatever their number.

Shapes: T rows, V vocabulary, N any width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from dft_plugin.kernels.softmax import Scored
from dft_plugin.kernels.types import Transform
from dft_plugin.objectives import Rows, RowStatistic

_CACHE_ELEMENTS = 1 << 19
"""Elements of a row block on a CPU: 2 MB of float32, so that the passes stay in the cache."""

_ACCELERATOR_ELEMENTS = 1 << 24
"""The same elsewhere: 64 MB of float32, enough to fill a device, little beside a chunk of logits."""


def block_rows(device_type: str, vocab_size: int) -> int:
    """Return how many rows of logits are worked on at a time."""
    if device_type == "cpu":
        return max(1, _CACHE_ELEMENTS // max(vocab_size, 1))
    # By eights, so that each block starts on 16 bytes, whatever the vocabulary: see `allocation.new_rows`.
    return max(8, _ACCELERATOR_ELEMENTS // max(vocab_size, 1) // 8 * 8)


def by_blocks(
    score_: Callable[..., Scored],
    logits_TV: Tensor,
    targets_T: Tensor,
    transform: Transform,
    needs: frozenset[RowStatistic],
    peak: float,
) -> Scored:
    """Score rows of raw logits by code that makes copies of what it is given: one row at least.

    Args:
        score_: does what `softmax.score_block_` does.
        logits_TV: raw logits of any float dtype; overwritten.
        targets_T: int64 targets in [0, V).
        transform: what the model does to raw logits.
        needs: costly statistics to compute as well.
        peak: largest entry of a row of gradients in half precision.
    """
    T, V = logits_TV.shape
    step = block_rows(logits_TV.device.type, V)
    parts = [
        score_(logits_TV[start : start + step], targets_T[start : start + step], transform, needs, peak=peak)
        for start in range(0, T, step)
    ]
    return Scored(
        concatenate([part.rows for part in parts]),
        torch.cat([part.inverse_norm_T for part in parts]),
    )


def concatenate(parts: list[Rows]) -> Rows:
    """Join the statistics of consecutive blocks of rows."""
    columns: dict[str, Any] = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Rows)}
    joined: dict[str, Any] = {name: None if c[0] is None else torch.cat(c) for name, c in columns.items()}
    return Rows(**joined)


def scale_rows(rows_TN: Tensor, factor_T1: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply rows, in the dtype of their factors, with no more than a block of them in it.

    Args:
        rows_TN: overwritten, unless `dtype` is another.
        factor_T1: of the dtype of sums.
        dtype: of the product, to which it is rounded once.

    Returns:
        The product: `rows_TN` itself where it has the `dtype`.
    """
    if rows_TN.dtype == factor_T1.dtype == dtype:
        return rows_TN.mul_(factor_T1)
    out_TN = rows_TN if rows_TN.dtype == dtype else torch.empty_like(rows_TN, dtype=dtype)
    T, N = rows_TN.shape
    step = block_rows(rows_TN.device.type, N)
    buffer_BN = factor_T1.new_empty(min(step, T), N)
    for start in range(0, T, step):
        block = slice(start, start + step)
        work_BN = buffer_BN[: rows_TN[block].shape[0]].copy_(rows_TN[block])
        out_TN[block].copy_(work_BN.mul_(factor_T1[block]))
    return out_TN
