"""How many rows of logits exist at a time."""

from __future__ import annotations

import math

_MIB = 1 << 20

_FROZEN_BYTES = 40 * _MIB
"""Where no gradient of the head's weight exists either, the logits are what training pays for the loss."""

_TRAINED_BYTES = 300 * _MIB
"""Beside the gradient of a whole weight this is little, and larger products run faster."""

_CPU_ROWS = (1, 64, 1024)
"""Rows of a tile, fewest and most rows of a chunk: below, a GEMM waits for memory; beyond, nothing was gained."""

_ACCELERATOR_ROWS = (128, 256, 4096)
"""The same where a GEMM works on tiles, and needs more rows to fill the device."""


def chunk_rows(
    device_type: str, row_bytes: int, scratch_bytes: int | None, *, tokens: int, weight_trained: bool
) -> int:
    """Return the rows of a chunk of logits: as few as make no more chunks than the budget does.

    Args:
        device_type: e.g. `cpu` or `cuda`.
        row_bytes: bytes of the logits of one token.
        scratch_bytes: bound on the chunk, or None: 40 MiB on a CPU if the weight is frozen, else 300 MiB.
        tokens: rows of all chunks together.
        weight_trained: whether the gradient of the whole weight is made.
    """
    on_cpu = device_type == "cpu"
    if scratch_bytes is None:
        scratch_bytes = _FROZEN_BYTES if on_cpu and not weight_trained else _TRAINED_BYTES
    tile, fewest, most = _CPU_ROWS if on_cpu else _ACCELERATOR_ROWS
    allowed = scratch_bytes // max(row_bytes, 1) // tile * tile
    allowed = max(fewest, min(most, allowed))
    chunks = math.ceil(tokens / allowed) or 1
    return max(1, math.ceil(tokens / chunks / tile) * tile)
