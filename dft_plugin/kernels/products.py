"""Products of gradients and inputs, added up over chunks of tokens.

Shapes: C tokens of a chunk, V vocabulary, N any width, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from dft_plugin.kernels.gemm import half_is_faster
from dft_plugin.kernels.softmax import HALF_PEAK

_BLOCK_ROWS = 8192
"""Rows of a sum that are added at a time where a GEMM cannot do it."""

_WIDENED_BYTES = 8 << 20
"""A block of what is multiplied, copied to float32: it stays near the cores."""

_FLOAT16_EXPONENT = 15
"""Sums of float16 are kept below 2 to this power, half of what they may be."""


def add_product_(total_VN: Tensor, grad_CV: Tensor, right_CN: Tensor, *, first: bool) -> None:
    """Add `grad_CV.T @ right_CN` to a sum.

    A sum of a dtype wider than that of the GEMM costs least where a GEMM of half precision adds to a float32 matrix:
    one read and one write of it for each chunk, and no rounding between. Elsewhere a block of its rows is multiplied
    into a buffer, and that is added. A CPU that is not faster in half precision multiplies in the dtype of sums, and
    rounds nothing at all.

    Args:
        total_VN: of the dtype of sums.
        grad_CV: in the dtype of the GEMM, see `softmax.store_`.
        right_CN: in the dtype of sums; overwritten.
        first: whether the sum holds nothing yet, not even zeros.
    """
    left_VC = grad_CV.t()
    if total_VN.dtype == left_VC.dtype:
        if first:
            torch.mm(left_VC, right_CN, out=total_VN)
        else:
            total_VN.addmm_(left_VC, right_CN)
        return
    can = widening_gemms(total_VN.device, left_VC.dtype, total_VN.dtype)
    if left_VC.is_cpu and not can and not half_is_faster(left_VC.dtype):
        _add_copied_(total_VN, left_VC, right_CN, first=first)
        return
    undo_N = _fit_float16_(right_CN) if left_VC.dtype == torch.float16 else None
    _add_widened_(total_VN, left_VC, right_CN.to(left_VC.dtype), undo_N, can, first=first)


def _add_copied_(total_VN: Tensor, left_VC: Tensor, right_CN: Tensor, *, first: bool) -> None:
    """Add a product in the dtype of sums, with copies of the left side in it."""
    V, C = left_VC.shape
    step = max(64, _WIDENED_BYTES // (max(C, 1) * total_VN.dtype.itemsize))
    for start in range(0, V, step):
        rows = slice(start, start + step)
        left_BC = left_VC[rows].to(total_VN.dtype)
        if first:
            torch.mm(left_BC, right_CN, out=total_VN[rows])
        else:
            total_VN[rows].addmm_(left_BC, right_CN)


def _add_widened_(
    total_VN: Tensor,
    left_VC: Tensor,
    right_CN: Tensor,
    undo_N: Tensor | None,
    can: frozenset[str],
    *,
    first: bool,
) -> None:
    """Add a product of half precision to a sum that is not.

    Args:
        total_VN: added to, or written where `first`.
        left_VC: of half precision.
        right_CN: of the same dtype.
        undo_N: what the columns of the product are to be multiplied by, or None.
        can: the GEMMs that widen, see `widening_gemms`.
        first: see `add_product_`.
    """
    if undo_N is None and _added_whole(total_VN, left_VC, right_CN, can, first=first):
        return
    V, N = total_VN.shape
    buffer_BN = total_VN.new_empty(min(V, _BLOCK_ROWS), N) if "mm" in can else None
    for start in range(0, V, _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        total_BN, product_BN = total_VN[rows], _product(left_VC[rows], right_CN, buffer_BN)
        if undo_N is not None and first:
            torch.mul(product_BN, undo_N, out=total_BN)
        elif undo_N is not None:
            total_BN.addcmul_(product_BN.to(total_BN.dtype), undo_N)
        elif first:
            total_BN.copy_(product_BN)
        else:
            total_BN += product_BN


def _added_whole(total_VN: Tensor, left_VC: Tensor, right_CN: Tensor, can: frozenset[str], *, first: bool) -> bool:
    """Let one GEMM write, or add to, the whole sum; returns whether there is one that does."""
    options = {"out_dtype": total_VN.dtype, "out": total_VN}
    if first:
        return "mm" in can and _ran(partial(torch.mm, left_VC, right_CN, **options))
    return "addmm" in can and _ran(partial(torch.addmm, total_VN, left_VC, right_CN, **options))


def _product(left_BC: Tensor, right_CN: Tensor, wide_BN: Tensor | None) -> Tensor:
    """Multiply into the buffer, where there is one for GEMMs that widen, else into memory of half precision."""
    if wide_BN is not None:
        wide_BN = wide_BN[: left_BC.shape[0]]
        if _ran(partial(torch.mm, left_BC, right_CN, out_dtype=wide_BN.dtype, out=wide_BN)):
            return wide_BN
    return left_BC @ right_CN


def _ran(gemm: Callable[[], Tensor]) -> bool:
    """Run a GEMM that torch may refuse for a shape although it took another; a refused one has written nothing."""
    try:
        gemm()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        # Whatever else is wrong is wrong with the GEMM that comes next, too, and raises there.
        return False
    return True


@cache
def widening_gemms(device: torch.device, dtype: torch.dtype, wide: torch.dtype) -> frozenset[str]:
    """Find out which GEMMs of a device take `dtype` and return, or add to, a matrix of a wider one.

    Asked of torch itself, with a product of a few numbers whose result nobody waits for: releases differ (2.8 has both
    on CUDA, but its `addmm` adds to half precision only), and so do devices.

    Returns:
        Of `mm` and `addmm`, those that do.
    """
    left, right = (torch.zeros(16, 16, dtype=dtype, device=device) for _ in range(2))
    total = torch.zeros(16, 16, dtype=wide, device=device)
    can = set()
    for gemm in ("mm", "addmm"):
        try:
            added = (total,) if gemm == "addmm" else ()
            getattr(torch, gemm)(*added, left, right, out_dtype=wide, out=total)
        except (RuntimeError, TypeError):
            # Not for this device, not for these dtypes, or not in this release.
            continue
        can.add(gemm)
    return frozenset(can)


def _fit_float16_(right_CN: Tensor) -> Tensor:
    """Multiply each column by a power of two, which rounds nothing: as large as no sum over the rows can overflow.

    Returns:
        What undoes it in the product, [N].
    """
    bound_N = HALF_PEAK * right_CN.abs().sum(0)
    exponent_N = torch.frexp(bound_N).exponent.clamp(min=-100) - _FLOAT16_EXPONENT
    one_N = torch.ones_like(bound_N)
    right_CN.mul_(torch.ldexp(one_N, -exponent_N))
    return torch.ldexp(one_N, exponent_N)
