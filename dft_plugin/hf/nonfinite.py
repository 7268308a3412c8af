"""What of a training was not a finite number first: in which step, which statistic, in which rows of the batch.

Sums stay on the device until somebody has reason to look: a NaN in the statistics of a log, or a flag of the ranks. A
sum of anything that is not finite is not finite either, so that nothing needs to be tested token by token.

Shapes: T scored tokens, R rows that are told apart, C micro-batches, K numbers that are kept of each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dft_plugin.core.loss import LossResult
from dft_plugin.core.plan import LossPlan
from dft_plugin.core.statistics import Sum
from dft_plugin.core.stats import LossStats
from dft_plugin.core.transfer import send

ROWS = 64
"""Rows of a batch that are told apart; the last of them stands for all that follow."""

_HELD = 32
"""Micro-batches after which the first bad one is looked for, on the device."""

_STEPS = 4096
"""Steps whose numbers are remembered where nothing is ever logged."""


@dataclass(frozen=True)
class Found:
    """The first micro-batch of a rank that was not finite.

    Attributes:
        step: the optimizer step that it belongs to, counted from 1.
        micro_batch: which of the step's, counted from 0.
        statistic: which of `Watch.words` was not finite first, in the order in which they are computed.
        rows: which rows of the batch, ascending; none where only something else than ours was not finite.
        rank: whose it is.
    """

    step: int
    micro_batch: int
    statistic: int
    rows: tuple[int, ...] = ()
    rank: int = 0

    def numbers(self) -> list[float]:
        """Return it as numbers that ranks can exchange; all 0 stands for nothing."""
        marks = [float(row in self.rows) for row in range(ROWS)]
        return [self.step, self.micro_batch, self.statistic, *marks]

    @classmethod
    def of(cls, numbers: Sequence[float], rank: int) -> Found | None:
        """Return what `numbers` has made; None where a rank found nothing."""
        step, micro_batch, statistic, *marks = numbers
        if not step:
            return None
        rows = tuple(row for row, mark in enumerate(marks) if mark)
        return cls(int(step), int(micro_batch), int(statistic), rows, rank)


@dataclass
class Watch:
    """Watches the micro-batches of one rank's training.

    Attributes:
        plan: what is computed; it says what there is besides the loss.
    """

    plan: LossPlan
    _open: Tensor | None = None
    _held: list[Tensor] = field(default_factory=list)
    _first: Tensor | None = None
    _count: int = 0
    _steps: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_STEPS))

    @property
    def words(self) -> list[str]:
        """What is watched, in the order in which it is computed."""
        filled = self.plan.filled
        columns = [
            f"`{name}` of the reference" if name in filled else f"the column `{name}`" for name in self._columns
        ]
        values = [f"dft/{name}" for name in self.plan.statistics]
        return [
            *columns,
            "log p of a target (dft/nll)",
            "the entropy",
            *values,
            "a weight (dft/mean_weight)",
            "the loss of a target (dft/loss)",
            "the whole loss, with what the model or the trainer adds to ours",
        ]

    @property
    def _columns(self) -> list[str]:
        return sorted(self.plan.columns | self.plan.filled)

    # What it keeps is no part of a graph.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
    def add(self, result: LossResult, stats: LossStats) -> None:
        """Take what one call scored, with its sums. Nothing is waited for."""
        sums_K, rows = stats.sums_K, result.scored.rows
        wide = sums_K.dtype
        columns = result.targets.columns
        nothing = sums_K.new_zeros(())
        named = [columns[name].sum().to(wide) if name in columns else nothing for name in self._columns]
        entropy = nothing if rows.entropy_T is None else rows.entropy_T.sum().to(wide)
        values_V = sums_K[len(Sum) :: 2]
        parts = [
            torch.stack([*named, sums_K[Sum.NLL], entropy]),
            values_V,
            torch.stack([sums_K[Sum.WEIGHT], sums_K[Sum.LOSS]]),
            _by_row(result, wide),
        ]
        made_K = torch.cat(parts)
        # A sum of both is not finite where one of them is not.
        self._open = made_K if self._open is None else self._open + made_K.to(self._open.device)

    def spoils(self, loss: Tensor) -> Tensor:
        """Say whether a micro-batch, before its `end`, would spoil the weights: bool, a scalar. Nothing is waited for.

        Its loss is not finite, or a log p is NaN: a weight of 0 (what a threshold makes of NaN) hides that from the
        loss, and not from the gradients. A log p of -inf with a weight of 0 spoils nothing.

        Args:
            loss: what goes backward: a scalar.
        """
        bad = loss.detach().isfinite().all().logical_not()
        return bad if self._open is None else bad | self._open[len(self._columns)].isnan().to(bad.device)

    def end(self, loss: Tensor, step: int) -> None:
        """Close a micro-batch.

        Args:
            loss: what goes backward: a scalar.
            step: the optimizer step that it belongs to, counted from 1.
        """
        made, self._open = self._open, None
        if made is None:
            # Nothing of ours; whoever guards the step says so.
            return
        if not self._steps or self._steps[-1][1] != step:
            self._steps.append((self._count, step))
        self._held.append(torch.cat([made, loss.detach().reshape(1).to(made)]))
        self._count += 1
        if len(self._held) == _HELD:
            self._fold()

    def forget(self) -> None:
        """Begin anew: what was watched has been logged, or left out."""
        self._open, self._first = None, None
        self._held.clear()
        self._steps.clear()

    def read(self) -> Found | None:
        """Return the first micro-batch that was not finite; None: all were. Waits for the device."""
        self._fold()
        if self._first is None:
            return None
        at, *marks = self._first.tolist()
        if not at:
            return None
        *marks, whole = marks
        statistics, by_row = [*marks[:-ROWS], whole], marks[-ROWS:]
        at = int(at) - 1
        began, step = next((one for one in reversed(self._steps) if one[0] <= at), (at, 0))
        rows = tuple(row for row, mark in enumerate(by_row) if mark)
        return Found(step or self._steps[0][1], at - began, statistics.index(1.0), rows)

    def _fold(self) -> None:
        """Look for the first bad micro-batch of those that are held, where none was found before."""
        if not self._held:
            return
        kept_CK = torch.stack([one.to(self._held[0].device) for one in self._held])
        bad_CK = kept_CK.isfinite().logical_not().to(kept_CK.dtype)
        any_C = bad_CK.amax(1)
        at = any_C.argmax(keepdim=True)
        number = (at + (self._count - len(self._held) + 1)) * any_C.amax()
        found = torch.cat([number.to(bad_CK), bad_CK.index_select(0, at)[0]])
        self._held.clear()
        self._first = found if self._first is None else torch.where(self._first[:1] > 0, self._first, found)


def _by_row(result: LossResult, wide: torch.dtype) -> Tensor:
    """Sum what is computed of each token over the rows of the batch, [R]."""
    scored, where = result.scored, result.selection
    both_T = (scored.loss_T + scored.rows.logp_T).to(wide)
    length = where.shape[-1] if len(where.shape) > 1 else max(where.shape.numel(), 1)
    row_T = (where.positions_T // length).clamp(max=ROWS - 1)
    return both_T.new_zeros(ROWS).index_add(0, send(row_T, both_T.device), both_T)


def exchanged(trainer: Any, found: Found | None) -> list[Found]:
    """Tell all ranks what each has found, the first of all first. Every rank must call it; waits for the device."""
    accelerator = trainer.accelerator
    ranks, rank = accelerator.num_processes, accelerator.process_index
    mine = [0.0] * (ROWS + 3) if found is None else found.numbers()
    # Sums of float32 keep steps below 16 million.
    slots = torch.zeros(ranks, len(mine), device=accelerator.device)
    slots[rank] = torch.tensor(mine, device=accelerator.device)
    told = accelerator.reduce(slots, reduction="sum").tolist()
    every = [Found.of(numbers, number) for number, numbers in enumerate(told)]
    return sorted((one for one in every if one is not None), key=lambda one: (one.step, one.micro_batch, one.rank))


def in_words(every: Sequence[Found], words: Sequence[str], ranks: int, micro_batches: int) -> str:
    """Say what was found: `step 3, rank 1 of 2: log p of a target (dft/nll), in rows 0 and 2 of its batch`.

    Args:
        every: what the ranks have found, the first first.
        words: of `Watch.words`.
        ranks: how many there are.
        micro_batches: of a step.
    """
    first = every[0]
    said = f"step {first.step}"
    if micro_batches > 1:
        said += f", micro-batch {first.micro_batch + 1} of {micro_batches}"
    if ranks > 1:
        said += f", rank {first.rank} of {ranks}"
    said += f": not finite was first {words[first.statistic]}"
    if first.rows:
        last = f" (and perhaps later ones than {ROWS - 1})" if first.rows[-1] == ROWS - 1 else ""
        one = len(first.rows) == 1
        listed = ", ".join(map(str, first.rows))
        said += f", in {'row' if one else 'rows'} {listed}{last} of that batch (counted from 0)"
    others = [str(one.rank) for one in every[1:] if one.step == first.step and one.rank != first.rank]
    return said + (f"; in the same step on rank {', '.join(others)}, too" if others else "")
