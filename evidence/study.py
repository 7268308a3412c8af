"""The rows of the study, looked at: what a loss led to in a cell, and how two of them compare there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import mean

from evidence.grid import CORE_PART, FAMILY_PART, RATE, Grid
from evidence.intervals import half_width, paired
from evidence.rows import Row

Measure = Callable[[Row], float]

MARGIN = 0.005 + 1e-9
"""Half a point: what the main hypothesis allows; differences of shares are a little more or less than they are."""


def accuracy(name: str) -> Measure:
    """Return the measure of an accuracy, `taught@0` or another."""
    return lambda row: float(row["accuracy"][name])


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: itself.
        half: half of its 95 % interval; infinite for one seed.
        seeds: how many.
    """

    mean: float
    half: float
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate | None:
        """Return the estimate; None for no values."""
        found = list(values)
        return cls(mean(found), half_width(found), len(found)) if found else None


@dataclass(frozen=True)
class Verdict:
    """What a cell says of the main hypothesis.

    Attributes:
        better: the better of SFT and DFT.
        difference: alpha 0.5 minus that.
        word: `holds`, `broken`, `does not decide`, `one seed`, or `none learns`: all three are below 1 %.
    """

    better: str
    difference: Estimate
    word: str


@dataclass(frozen=True)
class Study:
    """Rows and the grid that they fill.

    Attributes:
        grid: what was planned.
        rows: what there is, by key.
    """

    grid: Grid
    rows: Mapping[str, Row]

    def by_seed(self, cell: str, loss: str, part: str | None = None) -> dict[int, Row]:
        """Return the reported rows of a loss in a cell, of the losses in both parts alike."""
        parts = (part,) if part else (CORE_PART, FAMILY_PART)
        found = [
            row
            for row in self.rows.values()
            if row["cell"] == cell and row["loss"] == loss and row["part"] in parts and row["seed"] in self.grid.seeds
        ]
        return {row["seed"]: row for row in sorted(found, key=lambda row: row["seed"])}

    def estimate(self, cell: str, loss: str, measure: Measure) -> Estimate | None:
        """Return the mean of a measure over the seeds; None where there is no run."""
        return Estimate.of(measure(row) for row in self.by_seed(cell, loss).values())

    def difference(self, cell: str, first: str, second: str, measure: Measure) -> Estimate | None:
        """Return first minus second, by pairs of the same seed; None where there is no pair."""
        one, other = self.by_seed(cell, first), self.by_seed(cell, second)
        seeds = [seed for seed in one if seed in other]
        if not seeds:
            return None
        middle, half = paired([measure(one[seed]) for seed in seeds], [measure(other[seed]) for seed in seeds])
        return Estimate(middle, half, len(seeds))

    def verdict(self, cell: str, measure: Measure, loss: str = "alpha 0.5") -> Verdict | None:
        """Return what a cell says of a loss beside the better of SFT and DFT; None where one of them is missing."""
        found = {name: self.estimate(cell, name, measure) for name in ("SFT", "DFT")}
        if None in found.values():
            return None
        better = max(found, key=lambda name: found[name].mean if found[name] else -math.inf)
        difference, own = self.difference(cell, loss, better, measure), self.estimate(cell, loss, measure)
        if difference is None or own is None:
            return None
        learned = max(own.mean, *(one.mean for one in found.values() if one)) >= 0.01
        return Verdict(better, difference, word(difference) if learned else "none learns")

    def counted(self) -> dict[str, tuple[int, int]]:
        """Return by part how many runs there are, and are planned; of the rates, at least."""
        made = {RATE: 0, CORE_PART: 0, FAMILY_PART: 0}
        for row in self.rows.values():
            if row["part"] in made:
                made[row["part"]] += 1
        return {part: (made[part], max(made[part], planned)) for part, planned in self.grid.planned().items()}

    def cells(self, asked: str = "taught@0") -> list[str]:
        """Return the names of the cells that have a row with an accuracy, in order."""
        there = {row["cell"] for row in self._reported() if asked in row["accuracy"]}
        return [cell.name for cell in self.grid.cells if cell.name in there]

    def losses(self, cell: str) -> list[str]:
        """Return the names of the losses that have a row in a cell."""
        there = {row["loss"] for row in self._reported() if row["cell"] == cell}
        return [loss for loss in (*self.grid.core, *self.grid.family) if loss in there] + sorted(
            there - {*self.grid.core, *self.grid.family}
        )

    def prior(self, cell: str) -> float | None:
        """Return the mean probability of the demonstrated tokens before training."""
        found = [row["before"]["mean_prob"] for row in self._reported() if row["cell"] == cell]
        return mean(found) if found else None

    def _reported(self) -> list[Row]:
        parts, seeds = (CORE_PART, FAMILY_PART), self.grid.seeds
        return [row for row in self.rows.values() if row["part"] in parts and row["seed"] in seeds]


def word(difference: Estimate) -> str:
    """Return whether a difference holds what was supposed of it: that it is not below -`MARGIN`."""
    if difference.seeds < 2:
        return "one seed"
    low, high = difference.mean - difference.half, difference.mean + difference.half
    if high < -MARGIN:
        return "broken"
    return "holds" if low > -MARGIN else "does not decide"
