"""Which code scores rows of logits on a kind of device: a Triton kernel, compiled code, or the plain code.

Shapes: T rows, V vocabulary, S rows of a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dft_plugin.kernels.added import added_to_rows, named_in
from dft_plugin.kernels.allocation import placed_as
from dft_plugin.kernels.compiled import CompiledScorer, out_of_memory, say_without
from dft_plugin.kernels.rows import by_blocks
from dft_plugin.kernels.softmax import HALF_PEAK, Scored, score_block_
from dft_plugin.kernels.types import Transform
from dft_plugin.objectives import RowStatistic

_TRITON_DEVICES = ("cuda", "xpu")
"""Where torch comes with Triton; ROCm's devices are called cuda, too."""

_SAMPLE_ROWS = 8
"""Rows of the first chunk that are scored twice."""

_STATISTICS_TOLERANCE = 1e-3
"""Relative; both codes sum in float32, and differ by 1e-6, with logits of thousands by a hundred times that."""

_TINY = 1e-30
"""What is smaller counts as 0."""

_ENTROPY_TOLERANCE = 1e-3
"""In nats: it is a difference of two numbers that may be much larger."""

_GRADIENT_TOLERANCE = 1e-5
"""Relative to 1 - p: the plain code's slope of a softcap, a difference from 1, has no more digits."""


def score_rows_(
    logits_TV: Tensor,
    targets_T: Tensor,
    transform: Transform,
    needs: frozenset[RowStatistic] = frozenset(),
    *,
    peak: float = HALF_PEAK,
) -> Scored:
    """Score rows of raw logits, by what is fastest on their device, and overwrite them with their gradient.

    Args:
        logits_TV: raw logits of any float dtype; overwritten, see `softmax.score_block_`.
        targets_T: int64 targets in [0, V).
        transform: what the model does to raw logits.
        needs: costly statistics to compute as well.
        peak: largest entry of a row of gradients in half precision.
    """
    added = added_to_rows(needs, logits_TV, targets_T, transform)
    needs = named_in(needs)
    if logits_TV.shape[0]:
        scored = row_scorer(logits_TV.device.type)(logits_TV, targets_T, transform, needs, peak=peak)
    else:
        # Nothing to compile for.
        scored = score_block_(logits_TV, targets_T, transform, needs)
    return replace(scored, rows=replace(scored.rows, added=added)) if added else scored


@cache
def row_scorer(device_type: str) -> RowScorer:
    """Return the scorer for a kind of device, e.g. `cpu` or `cuda`: one a process, which learns what works there.

    A CPU runs the plain code as it is, on blocks that stay in its cache. On an accelerator each of its passes would be
    a kernel that reads and writes the block, so there it is one kernel, or at least compiled.
    """
    if device_type == "cpu":
        return RowScorer(device_type, score_block_, fused=False, keeps_dtype=False)
    return RowScorer(device_type, CompiledScorer(device_type), fused=device_type in _TRITON_DEVICES)


class RowScorer:
    """Scores rows by a Triton kernel until that fails or is found wrong, and by blocks of other code from then on.

    The kernel fails where Triton is missing, or at any call that it has to be compiled for: at a new dtype, softcap,
    statistic or alignment. It fails before it writes, so that what comes next finds the logits as they were.
    """

    def __init__(
        self,
        device_type: str,
        score_block_: Callable[..., Scored],
        *,
        fused: bool = True,
        keeps_dtype: bool = True,
    ) -> None:
        """Start without trust.

        Args:
            device_type: for messages.
            score_block_: what `softmax.score_block_` does, for blocks of rows.
            fused: whether the Triton kernel is tried first.
            keeps_dtype: whether logits of half precision are best scored where they are; a CPU is faster on a copy in
                float32 that stays in its cache.
        """
        self.keeps_dtype = keeps_dtype
        self._device_type = device_type
        self._score_block_ = score_block_
        self._fused = fused
        self._trusted: set[tuple[Any, ...]] = set()

    @property
    def code(self) -> str:
        """What scores now: `triton`, `torch.compile` or `plain`."""
        if self._fused and self._trusted:
            return "triton"
        return self._score_block_.code if isinstance(self._score_block_, CompiledScorer) else "plain"

    def __call__(
        self,
        logits_TV: Tensor,
        targets_T: Tensor,
        transform: Transform,
        needs: frozenset[RowStatistic] = frozenset(),
        *,
        peak: float = HALF_PEAK,
    ) -> Scored:
        """Score one row at least; arguments as those of `score_rows_`."""
        failure = None
        if self._fused and not torch.compiler.is_compiling():
            try:
                scored = self._by_kernel(logits_TV, targets_T, transform, needs, peak)
            except Exception as error:
                if out_of_memory(error):
                    raise
                failure = error
            else:
                if scored is not None:
                    return scored
        scored = by_blocks(self._score_block_, logits_TV, targets_T, transform, needs, peak)
        if failure is not None:
            # What is wrong with the inputs or the device was raised by the other code, and is not the kernel's.
            self._fused = False
            say_without("the Triton kernel does not work", self._device_type, failure)
        return scored

    def _by_kernel(
        self,
        logits_TV: Tensor,
        targets_T: Tensor,
        transform: Transform,
        needs: frozenset[RowStatistic],
        peak: float,
    ) -> Scored | None:
        """Score all rows at once; None if the kernel is not for such logits (float64), or not yet."""
        from dft_plugin.kernels import triton_rows

        if not triton_rows.takes(logits_TV):
            return None
        kind = logits_TV.device, triton_rows.program_for(logits_TV, targets_T, transform, needs)
        if kind not in self._trusted:
            if logits_TV.is_cuda and torch.cuda.is_current_stream_capturing():
                # A CUDA graph cannot wait for a comparison.
                return None
            compare_on_sample(triton_rows.score_whole_, logits_TV, targets_T, transform, needs)
            self._trusted.add(kind)
        return triton_rows.score_whole_(logits_TV, targets_T, transform, needs, peak=peak)


class WrongNumbersError(RuntimeError):
    """A kernel's numbers are not those of the plain code."""


def compare_on_sample(
    score_: Callable[..., Scored],
    logits_TV: Tensor,
    targets_T: Tensor,
    transform: Transform,
    needs: frozenset[RowStatistic],
) -> None:
    """Score a copy of some rows by a kernel and by the plain code, on their device, and wait for it once.

    The copy lies in memory as the rows do, so that what is compared is the program that they will get.

    Memory: 8 rows, some five times in float32.

    Raises:
        WrongNumbersError: they differ by more than two ways to round.
    """
    step = max(1, logits_TV.shape[0] // _SAMPLE_ROWS)
    sample_SV, targets_S = logits_TV[::step][:_SAMPLE_ROWS], targets_T[::step][:_SAMPLE_ROWS]
    ours_SV, theirs_SV = placed_as(logits_TV, len(sample_SV)).copy_(sample_SV), sample_SV.clone()
    placed_S = placed_as(targets_T[:, None], len(targets_S))[:, 0].copy_(targets_S)
    ours = score_(ours_SV, placed_S, transform, needs)
    theirs = score_block_(theirs_SV, targets_S, transform, needs)
    exact, rounding = _STATISTICS_TOLERANCE, max(4 * torch.finfo(logits_TV.dtype).eps, _STATISTICS_TOLERANCE)
    # Of a target that is all but certain 1 - p may be denormal, which one of the codes may take for 0.
    gradient_atol_S = (_GRADIENT_TOLERANCE * abs(transform.scale) * theirs.rows.one_minus_p_T).clamp(min=_TINY)
    agree = {
        "log p": _close(ours.rows.logp_T, theirs.rows.logp_T, exact),
        "1 - p": _close(ours.rows.one_minus_p_T, theirs.rows.one_minus_p_T, exact),
        "gradient": _close(
            ours_SV * ours.inverse_norm_T[:, None],
            theirs_SV * theirs.inverse_norm_T[:, None],
            rounding,
            gradient_atol_S[:, None],
        ),
    }
    if transform.softcap is None:
        # Two roundings of a tanh may make a tie, and break one.
        agree["top 1"] = (ours.rows.is_top1_T == theirs.rows.is_top1_T).all()
    if ours.rows.entropy_T is not None and theirs.rows.entropy_T is not None:
        agree["entropy"] = _close(ours.rows.entropy_T, theirs.rows.entropy_T, exact, _ENTROPY_TOLERANCE)
    if ours.rows.sum_p_squared_T is not None and theirs.rows.sum_p_squared_T is not None:
        agree["sum of p squared"] = _close(ours.rows.sum_p_squared_T, theirs.rows.sum_p_squared_T, exact)
    wrong = [name for name, right in zip(agree, torch.stack(list(agree.values())).tolist(), strict=True) if not right]
    if wrong:
        raise WrongNumbersError(
            f"its {' and '.join(wrong)} on {len(targets_S)} rows of {logits_TV.dtype} are not those of the plain code"
        )


def _close(ours: Tensor, theirs: Tensor, relative: float, absolute: Tensor | float = _TINY) -> Tensor:
    """Whether all numbers are near each other, both NaN, or the same infinity; without a wait for the device."""
    near = (ours - theirs).abs() <= theirs.abs() * relative + absolute
    return (near | (ours == theirs) | (ours.isnan() & theirs.isnan())).all()
