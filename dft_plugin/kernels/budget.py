"""How many rows of logits exist at a time.

On a CPU by measurement; on an accelerator by arithmetic, from the shape and from the memory that is free. How many
they are changes the order in which float32 sums are taken, and nothing else: ranks that choose differently, or a run
that is resumed beside a fuller memory, differ by rounding. Where ranks must agree (a collective for each chunk), the
free memory is not asked for.

Shapes: T scored tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from functools import cache

import torch

_MIB = 1 << 20

_FROZEN_BYTES = 40 * _MIB
"""On a CPU: where no gradient of the head's weight exists either, the logits are what training pays for the loss."""

_TRAINED_BYTES = 300 * _MIB
"""On a CPU: beside the gradient of a whole weight this is little, and larger products run faster."""

_CPU_ROWS = (1, 64, 1024)
"""Rows of a tile, fewest and most rows of a chunk: below, a GEMM waits for memory; beyond, nothing was gained."""

_ACCELERATOR_ROWS = (128, 256, 4096)
"""The same where a GEMM works on tiles, and needs more rows to fill the device."""

RIDGE = 300
"""Operations in half precision that a device does while it moves a byte: H100 295, A100 153, L40S 419, T4 203."""

_READ_ONCE = 2 * RIDGE
"""Rows with which a GEMM is bound by arithmetic, with room: the weight is read for each chunk, C operations a byte."""

_MOST_TRAFFIC = 0.1
"""Of the time of a trained head's three GEMMs, so much may go into its weight's gradient, which each chunk after the
first reads and writes in float32: 8 * V * D bytes beside 6 * C * V * D operations, so 4/3 * ridge / C."""

_TRAINED_ROWS = 4 / 3 * RIDGE / _MOST_TRAFFIC

_TILE_COLUMNS = 256
"""Of a GEMM's output, beside 128 rows: the tiles of cuBLAS on Ampere and later."""

_MOST_TRAINED, _MOST_FROZEN = 2048 * _MIB, 512 * _MIB
"""Bounds of a chunk. A trained weight has its gradient beside it, 4 * V * D bytes; a frozen head has nothing."""

_UNKNOWN_BYTES = 300 * _MIB
"""Where the shape of the head is not known, since it can only be called: its copies of a chunk are not, either."""

_SHARE = 4
"""A chunk takes at most this part of what is free: the head's gradients, and pieces of free memory, need the rest."""


def chunk_rows(
    device_type: str,
    row_bytes: int,
    scratch_bytes: int | None,
    *,
    tokens: int,
    weight_trained: bool,
    width: int | None = None,
    processors: int = 128,
    free_bytes: int | None = None,
) -> int:
    """Return the rows of a chunk of logits: as few as make no more chunks than the budget does.

    On a CPU the budget is 40 MiB if the weight is frozen, else 300 MiB (see also `beside_another`). On an accelerator:

    - a trained weight: as many rows as keep the traffic of its gradient at a tenth of the time of the GEMMs, 4,096;
    - a frozen one: one wave of tiles of the smaller product, [C, V] @ [V, D], and enough rows for arithmetic to count;
    - no more than 2 GiB and 512 MiB, and a quarter of the free memory, halved until it fits: what is free differs
      from call to call, and the halves keep the choice where it is.

    Args:
        device_type: e.g. `cpu` or `cuda`.
        row_bytes: bytes of the logits of one token.
        scratch_bytes: bound on the chunk, or None: as above.
        tokens: rows of all chunks together.
        weight_trained: whether the gradient of the whole weight is made.
        width: D, or None where the head can only be called: 300 MiB then.
        processors: multiprocessors of the accelerator, see `processors`.
        free_bytes: see `free_bytes`; None: not known, or not to be asked.
    """
    tile, fewest, most = _CPU_ROWS if device_type == "cpu" else _ACCELERATOR_ROWS
    row_bytes = max(row_bytes, 1)
    if scratch_bytes is not None:
        budget = scratch_bytes
    elif device_type == "cpu":
        budget = _TRAINED_BYTES if weight_trained else _FROZEN_BYTES
    else:
        budget = _preferred_bytes(row_bytes, weight_trained, width, processors)
        while free_bytes is not None and budget > max(free_bytes // _SHARE, fewest * row_bytes):
            budget //= 2
    allowed = budget // row_bytes // tile * tile
    allowed = max(fewest, min(most, allowed))
    chunks = math.ceil(tokens / allowed) or 1
    return max(1, math.ceil(tokens / chunks / tile) * tile)


def beside_another(device_type: str, scratch_bytes: int | None) -> int | None:
    """Return the budget of logits that are made beside those of a second head, a reference's.

    Such an objective costs one product more, and on a CPU short chunks would make that one and a half.

    Args:
        device_type: e.g. `cpu` or `cuda`.
        scratch_bytes: what the user has set, or None.
    """
    return _TRAINED_BYTES if scratch_bytes is None and device_type == "cpu" else scratch_bytes


def _preferred_bytes(row_bytes: int, weight_trained: bool, width: int | None, processors: int) -> int:
    """Return what a chunk is to have on an accelerator that has memory enough."""
    tile = _ACCELERATOR_ROWS[0]
    if weight_trained:
        return min(math.ceil(_TRAINED_ROWS / tile) * tile * row_bytes, _MOST_TRAINED)
    if width is None:
        return _UNKNOWN_BYTES
    wave = math.ceil(processors / math.ceil(max(width, 1) / _TILE_COLUMNS)) * tile
    return min(math.ceil(max(wave, _READ_ONCE) / tile) * tile * row_bytes, _MOST_FROZEN)


def free_bytes(device: torch.device) -> int | None:
    """Return what an allocation could have: free on the device, and held by torch without being used.

    Calls of the driver and of the allocator, on the CPU: none waits for the device. None on a CPU, while a graph is
    captured or code is traced (a choice would be frozen into it), and where torch does not say (it does for CUDA; for
    other devices newer releases do).
    """
    if device.type == "cpu" or device.type == "meta" or torch.compiler.is_compiling():
        return None
    try:
        if device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                return None
            free, _ = torch.cuda.mem_get_info(device)
            held = torch.cuda.memory_stats(device)
        else:
            free, _ = torch.accelerator.get_memory_info(device)
            held = torch.accelerator.memory_stats(device)
        unused = held.get("reserved_bytes.all.current", 0) - held.get("allocated_bytes.all.current", 0)
        return int(free + unused)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        # Among others: a device of another kind than the one that this torch accelerates.
        return None


@cache
def processors(device: torch.device) -> int:
    """Return the multiprocessors of a CUDA device; 128 for others, which is not far from any of its size."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 128
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
