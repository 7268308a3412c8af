"""What `softmax.score_block_` does, as one Triton kernel: one program a row, one read and one write of DRAM.

Importing this module imports triton. Shapes: T rows, V vocabulary, B columns that a program works on at a time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dft_plugin.kernels.softmax import HALF_PEAK, LEAST_REST, Scored
from dft_plugin.kernels.types import Transform
from dft_plugin.objectives import Rows, RowStatistic

_LOG2_E = tl.constexpr(1.4426950408889634)
_LOWEST = tl.constexpr(-3.4028234663852886e38)
_LEAST_REST = tl.constexpr(LEAST_REST)


class Launch(NamedTuple):
    """How the kernel is launched.

    Attributes:
        block: columns that a program works on at a time, a power of two.
        warps: of a program.
    """

    block: int
    warps: int


class Program(NamedTuple):
    """What selects one of the programs into which the kernel is compiled.

    Attributes:
        dtype: of the logits.
        vocab: V, of which Triton tells whether it has a factor of 16.
        launch: columns and warps.
        unit: see `unit_of`.
        seen: what Triton sees in where rows and targets start: multiples of 16 bytes, and a stride that has a factor
            of 16, is 1, or needs 64 bits.
        softcap: whether there is one.
        needs: costly statistics.
    """

    dtype: torch.dtype
    vocab: int
    launch: Launch
    unit: int
    seen: tuple[bool, ...]
    softcap: bool
    needs: frozenset[RowStatistic]


_LOAD_BYTES = 16
"""The widest load of a lane: 8 columns of half precision, 4 of float32."""

_MOST_THREADS = 512
"""More wait for each other in the reductions of a row, fewer keep too few loads in flight. On an H100 (V = 151,936,
bfloat16, 4,096 rows) it moves 2.0 TB/s; 256 threads with four loads each move 2.1, and spill registers elsewhere."""


def launch_for(vocab_size: int, dtype: torch.dtype, lanes: int = 64 if torch.version.hip else 32) -> Launch:
    """Return the launch for rows of a width: one load a lane, in as many warps as a row fills, 512 threads at most.

    Args:
        vocab_size: columns of a row.
        dtype: of the logits.
        lanes: of a warp.
    """
    columns = lanes * _LOAD_BYTES // dtype.itemsize
    warps = min(_MOST_THREADS // lanes, triton.next_power_of_2(triton.cdiv(vocab_size, columns)))
    return Launch(warps * columns, warps)


def unit_of(stride: int, dtype: torch.dtype) -> int:
    """Return in units of how many columns the kernel is told where rows start: of 16 bytes, or of 1 if need be.

    Of a number that it is given, Triton only looks for a factor of 16, which a row of 50,264 does not have.
    """
    columns = _LOAD_BYTES // dtype.itemsize
    return 1 if stride % columns else columns


def program_for(
    logits_TV: Tensor, targets_T: Tensor, transform: Transform, needs: frozenset[RowStatistic] = frozenset()
) -> Program:
    """Return which program `score_whole_` would launch; its arguments."""
    V, dtype, unit = logits_TV.shape[1], logits_TV.dtype, unit_of(logits_TV.stride(0), logits_TV.dtype)
    stride = logits_TV.stride(0) // unit
    # What is not contiguous is copied to where memory is allocated, which is a multiple of more than 16.
    targets = targets_T.is_contiguous() and targets_T.data_ptr() % 16 != 0
    seen = (logits_TV.data_ptr() % 16 == 0, not targets, stride % 16 == 0, stride == 1, stride >= 1 << 31)
    return Program(dtype, V, launch_for(V, dtype), unit, seen, transform.softcap is not None, needs)


def takes(logits_TV: Tensor) -> bool:
    """Whether the kernel is for such logits: rows without gaps, of float32, bfloat16 or float16."""
    return (
        logits_TV.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and logits_TV.numel() > 0
        and (logits_TV.stride(1) == 1 or logits_TV.shape[1] == 1)
    )


def score_whole_(
    logits_TV: Tensor,
    targets_T: Tensor,
    transform: Transform,
    needs: frozenset[RowStatistic] = frozenset(),
    *,
    peak: float = HALF_PEAK,
    launch: Launch | None = None,
) -> Scored:
    """Score rows of raw logits, and overwrite them: `softmax.score_block_`, in one launch for all rows.

    A row is read once for its sums, relative to a running maximum in each lane (online softmax, arXiv 1805.02867), and
    once more for its gradient, from the last column to the first: what was read last is still in the L2 cache. Sums
    are float32. Nothing is written unless the launch succeeds, and nothing waits for the device.

    Args:
        logits_TV: raw logits for which `takes` holds, with any stride of rows; overwritten.
        targets_T: int64 targets in [0, V).
        transform: what the model does to raw logits.
        needs: costly statistics to compute as well.
        peak: largest entry of a row of gradients in half precision.
        launch: instead of that of `launch_for`.
    """
    T, V = logits_TV.shape
    launch = launch or launch_for(V, logits_TV.dtype)
    # One allocation for all statistics.
    found_ST = logits_TV.new_empty(5, T, dtype=torch.float32)
    top1_T = logits_TV.new_empty(T, dtype=torch.int8)
    unit = unit_of(logits_TV.stride(0), logits_TV.dtype)
    cap = 1.0 if transform.softcap is None else transform.softcap
    with _on_device_of(logits_TV):
        score_row[(T,)](
            logits_TV,
            targets_T.contiguous(),
            found_ST,
            top1_T,
            logits_TV.stride(0) // unit,
            T,
            V,
            float(transform.scale),
            float(cap),
            1.0 / cap,
            float(peak),
            UNIT=unit,
            CAP=transform.softcap is not None,
            ENTROPY="entropy" in needs,
            SQUARES="sum_p_squared" in needs,
            BLOCK=launch.block,
            num_warps=launch.warps,
        )
    if not logits_TV.is_inference():
        # Or autograd would not notice that logits which a node has saved were overwritten.
        torch.autograd.graph.increment_version(logits_TV)
    logp_T, one_minus_p_T, inverse_norm_T, entropy_T, squares_T = found_ST.unbind()
    rows = Rows(
        logp_T=logp_T,
        one_minus_p_T=one_minus_p_T,
        is_top1_T=top1_T.view(torch.bool),
        entropy_T=entropy_T if "entropy" in needs else None,
        sum_p_squared_T=squares_T if "sum_p_squared" in needs else None,
    )
    return Scored(rows, inverse_norm_T)


def _on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of the logits."""
    if tensor.device.type == "cpu":
        # Triton's interpreter.
        return nullcontext()
    guard: AbstractContextManager[Any] = torch.get_device_module(tensor.device).device(tensor.device)
    return guard


@triton.jit
def _log1p(r):
    """Return log(1 + r) for r in [0, 1], by the series of 2 artanh(r / (2 + r)); Triton has none of its own."""
    z = r / (2.0 + r)
    q = z * z
    series = 1.0 / 15.0 + q * (1.0 / 17.0)
    series = 1.0 / 11.0 + q * (1.0 / 13.0 + q * series)
    series = 1.0 / 7.0 + q * (1.0 / 9.0 + q * series)
    series = 1.0 / 3.0 + q * (1.0 / 5.0 + q * series)
    return 2.0 * z * (1.0 + q * series)


@triton.jit
def _transformed(raw, scale, cap, inverse_cap, CAP: tl.constexpr):
    """Return transformed logits, and the slope of the softcap at them.

    Near 0 the tanh is Cephes' polynomial (tanhf.c, S. Moshier), elsewhere (1 - e) / (1 + e) with e = exp(-2 |u|).
    """
    x = raw * scale
    slope = tl.full(x.shape, 1.0, tl.float32)
    if CAP:
        u = x * inverse_cap
        e = tl.exp2(tl.abs(u) * (-2.0 * _LOG2_E))
        far = (1.0 - e) / (1.0 + e)
        z = u * u
        series = 2.06390887954e-2 - 5.70498872745e-3 * z
        series = 1.33314422036e-1 + z * (-5.37397155531e-2 + z * series)
        series = -3.33332819422e-1 + z * series
        near = u + u * z * series
        tanh = tl.where(tl.abs(u) < 0.625, near, tl.where(u < 0, -far, far))
        x = tanh * cap
        slope = 4.0 * e / ((1.0 + e) * (1.0 + e))
    return x, slope


@triton.jit
def _without(raw_B, left_out_B, scale, cap, inverse_cap, CAP: tl.constexpr):
    """Return transformed logits, with -inf where a column is left out."""
    x_B, _slope_B = _transformed(raw_B, scale, cap, inverse_cap, CAP)
    return tl.where(left_out_B, -float("inf"), x_B)


@triton.jit
def _gradient(raw_B, is_target_B, max_all, rest, scale, cap, inverse_cap, CAP: tl.constexpr):
    """Return the gradient of a row's columns: e, or -R for the target, times the slope of the softcap."""
    x_B, slope_B = _transformed(raw_B, scale, cap, inverse_cap, CAP)
    return tl.where(is_target_B, -rest, tl.exp2((x_B - max_all) * _LOG2_E)) * slope_B


@triton.jit
def _add(x_B, max_B, rest_B, e_y_B, squares_B, ENTROPY: tl.constexpr, SQUARES: tl.constexpr):
    """Add transformed logits to each lane's sums, relative to its maximum so far: one exponential for each."""
    d_B = x_B - max_B
    grows_B = d_B > 0
    t_B = tl.exp2(tl.abs(d_B) * -_LOG2_E)
    if ENTROPY:
        # Where t is 0, d may be infinite.
        rescaled_B = tl.where(t_B > 0, t_B * (e_y_B - rest_B * d_B), 0.0)
        e_y_B = tl.where(grows_B, rescaled_B, e_y_B + tl.where(t_B > 0, t_B * d_B, 0.0))
    if SQUARES:
        squares_B = tl.where(grows_B, squares_B * t_B * t_B + 1.0, squares_B + t_B * t_B)
    rest_B = tl.where(grows_B, rest_B * t_B + 1.0, rest_B + t_B)
    return tl.maximum(max_B, x_B), rest_B, e_y_B, squares_B


@triton.jit(do_not_specialize=["T"])
def score_row(
    x_ptr,
    target_ptr,
    found_ptr,
    top1_ptr,
    stride,
    T,
    V,
    scale,
    cap,
    inverse_cap,
    peak,
    UNIT: tl.constexpr,
    CAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    SQUARES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Score the row of this program. The columns beyond the last whole block have a mask, which costs wide loads."""
    # T * V may be beyond 2 ** 31.
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * stride * UNIT
    target = tl.load(target_ptr + row)
    column_B = tl.arange(0, BLOCK)
    whole = V // BLOCK * BLOCK
    # What is no target of this vocabulary makes the loss NaN, and reads nobody's memory.
    is_there = (target >= 0) & (target < V)
    raw_target = tl.load(x_ptr + target, mask=is_there, other=float("nan")).to(tl.float32)
    x_target, _slope_target = _transformed(raw_target, scale, cap, inverse_cap, CAP)

    # A finite lowest maximum: -inf less -inf would be NaN.
    max_B = tl.full([BLOCK], _LOWEST, tl.float32)
    rest_B = tl.zeros([BLOCK], tl.float32)
    e_y_B = tl.zeros([BLOCK], tl.float32)
    squares_B = tl.zeros([BLOCK], tl.float32)
    for start in range(0, whole, BLOCK):
        c_B = start + column_B
        raw_B = tl.load(x_ptr + c_B, eviction_policy="evict_last").to(tl.float32)
        x_B = _without(raw_B, c_B == target, scale, cap, inverse_cap, CAP)
        max_B, rest_B, e_y_B, squares_B = _add(x_B, max_B, rest_B, e_y_B, squares_B, ENTROPY, SQUARES)
    if whole < V:
        c_B = whole + column_B
        raw_B = tl.load(x_ptr + c_B, mask=c_B < V, other=0.0, eviction_policy="evict_last").to(tl.float32)
        x_B = _without(raw_B, (c_B == target) | (c_B >= V), scale, cap, inverse_cap, CAP)
        max_B, rest_B, e_y_B, squares_B = _add(x_B, max_B, rest_B, e_y_B, squares_B, ENTROPY, SQUARES)

    max_others = tl.max(max_B, 0)
    max_all = tl.maximum(max_others, x_target)
    shrink_B = tl.exp2((max_B - max_all) * _LOG2_E)
    rest = tl.sum(rest_B * shrink_B, 0)
    y_target = x_target - max_all
    e_target = tl.exp2(y_target * _LOG2_E)
    norm = rest + e_target
    far = y_target - tl.log(norm)
    near = -_log1p(rest / e_target)
    tl.store(found_ptr + row, tl.where(e_target > rest, near, far))
    tl.store(found_ptr + T + row, rest / norm)
    # A NaN among the others is in the sum, and not in the maximum; and norm is 0 where all are -inf, a tie.
    largest = (x_target >= max_others) & ((rest == rest) | (max_others == float("inf")))
    tl.store(top1_ptr + row, (largest | (norm == 0)).to(tl.int8))
    if ENTROPY:
        terms_B = shrink_B * (e_y_B + rest_B * (max_B - max_all))
        e_y = tl.sum(tl.where(shrink_B > 0, terms_B, 0.0), 0) + tl.where(e_target > 0, e_target * y_target, 0.0)
        tl.store(found_ptr + 3 * T + row, tl.log(norm) - e_y / norm)
    if SQUARES:
        squares = tl.sum(squares_B * shrink_B * shrink_B, 0) + e_target * e_target
        tl.store(found_ptr + 4 * T + row, squares / (norm * norm))

    # As in `softmax.store_`.
    factor = 1.0
    inverse_norm = 1.0 / norm
    if x_ptr.dtype.element_ty != tl.float32:
        least = tl.maximum(rest, _LEAST_REST)
        factor = peak / least
        inverse_norm = least / (peak * norm)
    tl.store(found_ptr + 2 * T + row, inverse_norm * scale)
    if whole < V:
        c_B = whole + column_B
        raw_B = tl.load(x_ptr + c_B, mask=c_B < V, other=0.0).to(tl.float32)
        e_B = _gradient(raw_B, c_B == target, max_all, rest, scale, cap, inverse_cap, CAP)
        tl.store(x_ptr + c_B, (e_B * factor).to(x_ptr.dtype.element_ty), mask=c_B < V)
    for start in range(0, whole, BLOCK):
        c_B = whole - BLOCK - start + column_B
        raw_B = tl.load(x_ptr + c_B, eviction_policy="evict_first").to(tl.float32)
        e_B = _gradient(raw_B, c_B == target, max_all, rest, scale, cap, inverse_cap, CAP)
        tl.store(x_ptr + c_B, (e_B * factor).to(x_ptr.dtype.element_ty))
