"""In which dtype a GEMM runs."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor

_ROWS, _INNER, _COLUMNS = 128, 256, 512
"""A product of 34 MFLOP: under a millisecond on one core, and 50 ms where half precision is emulated."""

_WORTH_IT = 1.3
"""Half precision must be this much faster than float32, which is nearer to the truth."""


def compute_dtype(weight_VD: Tensor) -> torch.dtype:
    """Return autocast's dtype where it is on, else the weight's."""
    device_type = weight_VD.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return weight_VD.dtype


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return autocast's dtype for a kind of device, None where it is off."""
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def block_dtype(weight_VD: Tensor) -> torch.dtype:
    """Return `compute_dtype`, or float32 where this CPU is not clearly faster in half precision."""
    dtype = compute_dtype(weight_VD)
    if dtype.itemsize < 4 and weight_VD.device.type == "cpu" and not half_is_faster(dtype):
        return torch.float32
    return dtype


@cache
def half_is_faster(dtype: torch.dtype) -> bool:
    """Time one product in `dtype` and in float32 on this CPU, once per process (some milliseconds).

    Feature flags do not tell. With AVX-512 BF16 and no AMX, a Xeon was seen to multiply bfloat16 at 0.6 times the
    speed of float32, and an EPYC at 4.5 times: far from the threshold, so that noise does not decide.

    Args:
        dtype: bfloat16 or float16.
    """
    return _WORTH_IT * _seconds(dtype) < _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        left, right = torch.ones(_ROWS, _INNER, dtype=dtype), torch.ones(_INNER, _COLUMNS, dtype=dtype)
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            torch.mm(left, right)
            best = min(best, time.perf_counter() - start)
    return best
