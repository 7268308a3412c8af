"""Memory for rows of logits. Shapes: C rows, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

_ALIGNMENT = 16
"""Bytes that an accelerator loads at once."""

_PERIOD = 16 * _ALIGNMENT
"""Bytes after which rows start alike for a compiler: in units of 16 bytes, a stride too may have a factor of 16."""


def new_rows(like_VD: Tensor, rows: int) -> Tensor:
    """Allocate rows of logits, [C, V]; each starts on 16 bytes, whatever V.

    So a kernel can load them by 16 bytes and GEMMs take their fast ways, also for a vocabulary of 50,257; on a CPU the
    GEMM into odd rows was measured to take 1.3 to 1.5 times as long. And so does every block of them: up to 2.7 torch
    lost what a compiled function wrote into a view that starts elsewhere (pytorch#152425). The columns that fill a row
    up are never seen: what is returned is a view without them.

    Args:
        like_VD: gives V, dtype and device.
        rows: C.
    """
    V = like_VD.shape[0]
    return like_VD.new_empty(rows, padded(V, like_VD.dtype))[:, :V]


def placed_as(like_TN: Tensor, rows: int) -> Tensor:
    """Allocate rows, [rows, N], that start where a kernel which was compiled for others may assume that rows start.

    That is: with the same distance from a multiple of 16 bytes, and a stride of the same factors; a copy would be
    contiguous, and run another program. Where rows are far apart (a column of [B, S, V]) these are not.

    Args:
        like_TN: gives N, dtype, device and place.
        rows: of what is returned.
    """
    N, stride = like_TN.shape[1], like_TN.stride(0)
    near = N + (stride - N) % (_PERIOD // like_TN.dtype.itemsize)
    ahead = like_TN.data_ptr() % _ALIGNMENT // like_TN.dtype.itemsize
    return like_TN.new_empty(ahead + rows * near)[ahead:].view(rows, near)[:, :N]


def padded(width: int, dtype: torch.dtype) -> int:
    """Return the least width, no smaller than `width`, whose rows all start on 16 bytes."""
    multiple = max(_ALIGNMENT // dtype.itemsize, 1)
    return -(-width // multiple) * multiple
