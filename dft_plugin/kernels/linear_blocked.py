"""Linear layer and token loss in one for a frozen head, over blocks of the vocabulary, in one pass.

Equal to `chunked`, without ever holding [T, V]. Shapes: T tokens of a pass, D hidden size, V vocabulary,
B rows of the weight in a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dft_plugin.kernels.added import block_functions_in, functions_in
from dft_plugin.kernels.gemm import block_dtype
from dft_plugin.kernels.gradients import Gradients, Inputs
from dft_plugin.kernels.linear_chunked import chunked
from dft_plugin.kernels.results import join, weigh
from dft_plugin.kernels.rows import block_rows
from dft_plugin.kernels.softmax import LOG2_E, Sums, accumulation_dtype, sum_e_y_, sum_squares, transform_
from dft_plugin.kernels.sweep import score
from dft_plugin.kernels.terms import is_soft
from dft_plugin.kernels.types import Head, KernelResult, Transform
from dft_plugin.kernels.weighing import by_scope
from dft_plugin.objectives import BlockFunction, Rows, RowStatistic, Targets, Weigher

_PASS_TOKENS = 2048
"""Tokens that share one pass over the weight."""

_BLOCK_BYTES = 16 << 20
"""A block of logits: small enough to stay near the cores, large enough for a GEMM."""

_BLOCK_ROWS = (256, 8192)
"""Fewest and most rows of the weight in a block, however many tokens there are."""

_TILE = 64
"""A block is a multiple of it: rows of an odd number of logits, which 16 MiB of 793 tokens make, cost a GEMM half its
speed."""


def blocked(
    hidden_TD: Tensor,
    head: Head,
    targets: Targets,
    objective: Weigher,
    *,
    needs: frozenset[RowStatistic] = frozenset(),
    scratch_bytes: int | None = None,
) -> KernelResult:
    """Score hidden states behind a head that is not trained.

    1. project onto a block of the vocabulary: one GEMM into a buffer [T, B];
    2. exponentiate it against the running maximum of each row, and add it to the running sums;
    3. multiply it with the same block of the weight while both are near: the second GEMM, added to the running
       gradient [T, D], which is rescaled when a row's maximum grows (online softmax, arXiv 1805.02867);
    4. at the end divide by the sum without the target, and subtract the target's part: w is detached, so backward
       only multiplies each row by w * (1 - p) and the upstream factor.

    Two GEMMs, the weight streamed once. Memory beyond inputs and gradient: T * (B + 2 * D) elements of
    float32 for passes of 2048 tokens, whatever V and however many tokens there are.

    The exponential that every CPU has is that to the base 2, so logits are taken in bits. Where GEMMs are in the dtype
    of sums, hidden states (and the bias) are multiplied by `scale * log2 e` before the first of them, T * D numbers in
    the place of T * V, and the block comes out scaled and in bits. Such logits are rounded in bits: by 2 ** -24 of
    their size, as by the GEMM itself. Elsewhere (half precision, a softcap, statistics that see logits) their
    distance from the maximum is multiplied.

    Half-precision inputs are multiplied in float32 on a CPU without AMX, block by block: faster there, and closer
    to the truth. A trained weight, bias or LoRA branch needs the whole row of probabilities at once, so such heads
    are passed on to `chunked`, and so are soft targets.

    Args:
        hidden_TD: what the model gives to its head, only scored positions.
        head: weight, bias, transform.
        targets: with ids in [0, V).
        objective: gives the weights.
        needs: costly statistics to return.
        scratch_bytes: handed to `chunked`; what is needed here is less.
    """
    trained = head.low_rank is not None or (head.trained and torch.is_grad_enabled())
    if hands_over(objective, needs, trained=trained):
        return chunked(hidden_TD, head, targets, objective, needs=needs, scratch_bytes=scratch_bytes)
    passes = _Passes(objective, block_dtype(head.weight_VD), head.transform, needs | objective.needs)
    return score(passes, targets, hidden_TD, head.weight_VD, head.bias_V)


def hands_over(objective: Weigher, needs: frozenset[RowStatistic], *, trained: bool) -> str | None:
    """Say why `chunked` scores in the place of `blocked`; None: it does not.

    Args:
        objective: gives the weights.
        needs: costly statistics that are wanted besides.
        trained: whether something of the head gets a gradient.
    """
    if trained:
        return "blocked is for a frozen head"
    if is_soft(objective):
        return f"blocked holds no row of logits, as {objective.name} compares"
    functions = functions_in(needs | objective.needs)
    whole = [function.name for function in functions if not isinstance(function, BlockFunction)]
    return f"blocked holds no row of logits, as {', '.join(whole)} wants" if whole else None


@dataclass(frozen=True)
class _Passes:
    """A `Scorer` for the gradient of the hidden states alone."""

    objective: Weigher
    dtype: torch.dtype
    transform: Transform
    needs: frozenset[RowStatistic]

    def __call__(self, targets: Targets, inputs: Inputs, wanted: tuple[bool, ...]) -> tuple[KernelResult, Gradients]:
        def run(weigher: Callable[[slice], Weigher], wanted: tuple[bool, ...]) -> tuple[KernelResult, Gradients]:
            return self._score(targets, inputs, wanted, weigher)

        with torch.autocast(targets.ids_T.device.type, enabled=False):
            return by_scope(run, self.objective, targets, wanted, twice=False)

    @property
    def folded(self) -> float | None:
        """What turns raw logits into bits, where hidden states can be multiplied by it and the logits need not be.

        None where that would round them (half precision), a cap stands between, or somebody wants to see the logits.
        """
        plain = self.transform.softcap is None and not functions_in(self.needs)
        return self.transform.scale * LOG2_E if plain and self.dtype == accumulation_dtype(self.dtype) else None

    @property
    def to_bits(self) -> float:
        """What turns transformed logits into bits, as they stand in a block."""
        return LOG2_E if self.folded is None else 1.0

    def _score(
        self, targets: Targets, inputs: Inputs, wanted: tuple[bool, ...], weigher: Callable[[slice], Weigher]
    ) -> tuple[KernelResult, Gradients]:
        hidden_TD, weight_VD, bias_V = inputs
        assert hidden_TD is not None
        assert weight_VD is not None
        # Kept like a token's gradient in half precision: relative to R, it is of the size of the weight.
        grads = Gradients.like(inputs, wanted, hidden_TD.dtype)
        bias_V = None if bias_V is None else self._folded_in(bias_V)
        parts: list[KernelResult] = []
        for start in range(0, max(hidden_TD.shape[0], 1), _PASS_TOKENS):
            tokens = slice(start, start + _PASS_TOKENS)
            hidden_PD = self._folded_in(hidden_TD[tokens]).to(self.dtype)
            running = _Running.start(self, hidden_PD, with_grad=wanted[0])
            ids_P = targets.ids_T[tokens]
            running.add_blocks(hidden_PD, weight_VD, bias_V, ids_P)
            part = weigh(weigher(tokens), running.finish(weight_VD[ids_P]), targets[tokens])
            parts.append(part)
            if grads.of[0] is not None and running.grad_TD is not None:
                grads.of[0][tokens] = running.grad_TD
                grads.factor_T1[tokens, 0] = part.weight_T * part.rows.one_minus_p_T * self.transform.scale
        return join(parts), grads

    def _folded_in(self, given: Tensor) -> Tensor:
        """Return what logits are made of, times the factor where there is one; half precision would round that."""
        return given if self.folded is None else given.to(self.dtype, copy=True).mul_(self.folded)


@dataclass
class _Running:
    """Sums of T rows over the blocks seen so far, relative to the running maximum of each row.

    Maximum and target are as logits stand in a block, in bits where a factor was folded in; e_log_e is in bits.
    The target is left out of all but its own two columns, so that 1 - p keeps its digits where p is near 1.
    """

    passes: _Passes
    max_T1: Tensor
    rest_T1: Tensor
    e_log_e_T1: Tensor
    e_squared_T1: Tensor
    x_target_T1: Tensor
    slope_target_T1: Tensor
    grad_TD: Tensor | None
    added: dict[str, list[Tensor]]

    @classmethod
    def start(cls, passes: _Passes, hidden_TD: Tensor, *, with_grad: bool) -> _Running:
        dtype = accumulation_dtype(hidden_TD.dtype)
        zero_T1 = hidden_TD.new_zeros(hidden_TD.shape[0], 1, dtype=dtype)
        # A finite lowest maximum: -inf less -inf would be NaN.
        lowest_T1 = torch.full_like(zero_T1, torch.finfo(zero_T1.dtype).min)
        return cls(
            passes,
            max_T1=lowest_T1,
            rest_T1=zero_T1,
            e_log_e_T1=zero_T1,
            e_squared_T1=zero_T1,
            x_target_T1=zero_T1,
            slope_target_T1=torch.ones_like(zero_T1),
            grad_TD=torch.zeros_like(hidden_TD, dtype=dtype) if with_grad else None,
            added={},
        )

    def add_blocks(self, hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_T: Tensor) -> None:
        """Go over the whole weight, in the dtype of `hidden_TD`."""
        T, work_dtype = hidden_TD.shape[0], self.max_T1.dtype
        fewest, most = _BLOCK_ROWS
        fitting = _BLOCK_BYTES // (max(T, 1) * work_dtype.itemsize) // _TILE * _TILE
        block = max(fewest, min(most, fitting))
        product = hidden_TD.new_empty(T, block)
        work = product if product.dtype == work_dtype else hidden_TD.new_empty(T, block, dtype=work_dtype)
        for start in range(0, weight_VD.shape[0], block):
            weight_BD = weight_VD[start : start + block].to(hidden_TD.dtype)
            B = weight_BD.shape[0]
            product_TB, x_TB = product[:, :B], work[:, :B]
            torch.mm(hidden_TD, weight_BD.t(), out=product_TB)
            if work is not product:
                x_TB.copy_(product_TB)
            if bias_V is not None:
                x_TB += bias_V[start : start + block]
            e_TB = self.add(x_TB, targets_T - start)
            if self.grad_TD is not None:
                self.add_gradient(e_TB if work is product else product_TB.copy_(e_TB), weight_BD)

    def add(self, x_TB: Tensor, columns_T: Tensor) -> Tensor:
        """Add a block of raw logits to the sums.

        Args:
            x_TB: overwritten; in bits already, where a factor was `folded` in.
            columns_T: the targets' columns in it.

        Returns:
            Their exponentials, times the slope of the transform: the gradient before `w / sum`.
        """
        slope_TB = None
        if self.passes.folded is None:
            slope_TB = transform_(x_TB, self.passes.transform)
            for function in block_functions_in(self.passes.needs, "blocked"):
                # A copy: it may be a view of the block, whose memory is used again.
                self.added.setdefault(function.name, []).append(function(x_TB, columns_T).clone())
        self._take_targets_out_(x_TB, slope_TB, columns_T)

        max_T1 = torch.maximum(self.max_T1, x_TB.amax(1, keepdim=True))
        fall_T1 = self._fall(max_T1)
        shrink_T1 = fall_T1.exp2()
        if self.grad_TD is not None:
            self.grad_TD.mul_(shrink_T1)
        if "entropy" in self.passes.needs:
            self.e_log_e_T1 = shrink_T1 * (self.e_log_e_T1 + self.rest_T1 * fall_T1)
        y_TB = x_TB.sub_(max_T1)
        if self.passes.folded is None:
            y_TB.mul_(self.passes.to_bits)
        if "entropy" in self.passes.needs:
            self.e_log_e_T1 = self.e_log_e_T1 + _exponential_and_sum_e_y_(y_TB)
        else:
            y_TB.exp2_()
        e_TB = y_TB
        self.max_T1 = max_T1
        self.rest_T1 = shrink_T1 * self.rest_T1 + e_TB.sum(1, keepdim=True)
        if "sum_p_squared" in self.passes.needs:
            self.e_squared_T1 = shrink_T1.square() * self.e_squared_T1 + sum_squares(e_TB)
        return e_TB if slope_TB is None else e_TB.mul_(slope_TB)

    def add_gradient(self, e_TB: Tensor, weight_BD: Tensor) -> None:
        """Add what `add` returned, in the dtype of the weight, times the same block of the weight."""
        assert self.grad_TD is not None
        if self.grad_TD.dtype == e_TB.dtype:
            self.grad_TD.addmm_(e_TB, weight_BD)
        else:
            self.grad_TD += e_TB @ weight_BD

    def _take_targets_out_(self, x_TB: Tensor, slope_TB: Tensor | None, columns_T: Tensor) -> None:
        # Of all rows, since which of them have their target here would have to be asked of the device.
        column_T1 = columns_T.clamp(0, x_TB.shape[1] - 1)[:, None]
        here_T1 = columns_T[:, None] == column_T1
        x_T1 = x_TB.gather(1, column_T1)
        self.x_target_T1 = torch.where(here_T1, x_T1, self.x_target_T1)
        if slope_TB is not None:
            self.slope_target_T1 = torch.where(here_T1, slope_TB.gather(1, column_T1), self.slope_target_T1)
        x_TB.scatter_(1, column_T1, x_T1.masked_fill_(here_T1, -torch.inf))

    def _fall(self, max_T1: Tensor) -> Tensor:
        """Return by how many bits sums fall beside a new maximum; finite, since 0 times -inf would be NaN."""
        return ((self.max_T1 - max_T1) * self.passes.to_bits).clamp_(min=torch.finfo(max_T1.dtype).min)

    def finish(self, target_weight_TD: Tensor) -> Rows:
        """Put the targets in, return the statistics, and leave the gradient divided by R.

        Args:
            target_weight_TD: the weight's rows of the targets.
        """
        max_T1 = torch.maximum(self.max_T1, self.x_target_T1)
        fall_T1 = self._fall(max_T1)
        shrink_T1 = fall_T1.exp2()
        rest_T1 = self.rest_T1 * shrink_T1
        e_y_T1 = shrink_T1 * (self.e_log_e_T1 + self.rest_T1 * fall_T1)
        squares_T1 = shrink_T1.square() * self.e_squared_T1
        if self.grad_TD is not None:
            # Relative to its own maximum R is 1 or more, or 0 where no token but the target is possible.
            self.grad_TD.div_(self.rest_T1.clamp(min=1)).sub_(
                target_weight_TD.to(self.grad_TD.dtype).mul_(self.slope_target_T1)
            )
        to_nats = self.passes.to_bits / LOG2_E
        rows, _ = Sums(
            max_T1 * to_nats,
            self.x_target_T1 * to_nats,
            rest_T1,
            e_y_T1=e_y_T1 / LOG2_E if "entropy" in self.passes.needs else None,
            squares_T1=squares_T1 if "sum_p_squared" in self.passes.needs else None,
        ).statistics()
        functions = block_functions_in(self.passes.needs, "blocked")
        return replace(rows, added={one.name: one.combine(_stacked(self.added[one.name])) for one in functions})


def _stacked(parts: list[Tensor]) -> Tensor:
    """Stack what functions made of blocks; the last block may be narrower, and what it gives too."""
    widest = max(part.shape[-1] if part.dim() > 1 else 0 for part in parts)
    padded = [
        part if part.dim() == 1 else torch.nn.functional.pad(part, (0, widest - part.shape[-1]), value=-torch.inf)
        for part in parts
    ]
    return torch.stack(padded)


def _exponential_and_sum_e_y_(y_TB: Tensor) -> Tensor:
    """Exponentiate bits in place, and return the sum of e * y over each row, [T, 1], in bits.

    A few rows at a time: a block and a copy of it would not stay in the cache, and cost five times as much.
    """
    T, B = y_TB.shape
    step = block_rows(y_TB.device.type, 4 * B)
    copy = y_TB.new_empty(min(step, T), B)
    sums = y_TB.new_empty(T, 1)
    for start in range(0, T, step):
        rows = slice(start, start + step)
        y = copy[: y_TB[rows].shape[0]].copy_(y_TB[rows])
        sums[rows] = sum_e_y_(y_TB[rows].exp2_(), y)
    return sums
