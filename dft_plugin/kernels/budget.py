"""How many rows of logits exist at a time."""

from __future__ import annotations

_MIB = 1 << 20

_FROZEN_BYTES = 40 * _MIB
"""Where no gradient of the head's weight exists either, the logits are what training pays for the loss."""

_TRAINED_BYTES = 300 * _MIB
"""Beside the gradient of a whole weight this is little, and larger products run faster."""

_CPU_ROWS = (64, 1024)
"""Fewest and most rows of a chunk: below, a GEMM waits for memory; beyond, nothing was gained."""

_ACCELERATOR_ROWS = (256, 4096)
"""The same where a GEMM needs more rows to fill the device."""

_TILE = 128
"""GEMMs of accelerators work on tiles; rows are a multiple of this."""


def chunk_rows(device_type: str, row_bytes: int, scratch_bytes: int | None, *, weight_trained: bool) -> int:
    """Return the rows of a chunk of logits.

    Args:
        device_type: e.g. `cpu` or `cuda`.
        row_bytes: bytes of the logits of one token.
        scratch_bytes: bound on the chunk, or None: 40 MiB on a CPU if the weight is frozen, else 300 MiB.
        weight_trained: whether the gradient of the whole weight is made.
    """
    on_cpu = device_type == "cpu"
    if scratch_bytes is None:
        scratch_bytes = _FROZEN_BYTES if on_cpu and not weight_trained else _TRAINED_BYTES
    fewest, most = _CPU_ROWS if on_cpu else _ACCELERATOR_ROWS
    rows = scratch_bytes // max(row_bytes, 1)
    if not on_cpu:
        rows -= rows % _TILE
    return max(fewest, min(most, rows))
