"""All runs of the study, in the order in which they tell the most, and what can be run next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from evidence import rates
from evidence.cells import Cell
from evidence.losses import BASE, CORE, ENDS, FAMILY
from evidence.rates import Tried
from evidence.rows import Row
from evidence.run import Run

RATE, CORE_PART, FAMILY_PART = "rates", "core", "family"
FAMILY_SEEDS = 3


@dataclass(frozen=True)
class Grid:
    """The study.

    Attributes:
        cells: in order; those of a group stand together.
        seeds: that are reported.
        rates: that are tried at first.
        core: losses that go everywhere, by name.
        family: losses at the telling points.
    """

    cells: tuple[Cell, ...]
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    rates: tuple[float, ...] = rates.RATES
    core: tuple[str, ...] = tuple(CORE)
    family: tuple[str, ...] = tuple(FAMILY)

    def pending(self, rows: Mapping[str, Row], part: str | None = None) -> list[Run]:
        """Return the runs that can be made now, the most telling first.

        A run whose rate is not chosen yet is none of them; those that choose it are.

        Args:
            rows: that are there, by key.
            part: only this one, and the runs that choose its rates.
        """
        wanted = [one for one in self._wanted() if part in (None, one[0])]
        found: dict[str, Run] = {}
        for name, cell, loss, seed in wanted:
            for run in self._towards(name, cell, loss, seed, rows):
                if run.key not in rows:
                    found.setdefault(run.key, run)
        return list(found.values())

    def planned(self) -> dict[str, int]:
        """Return how many runs each part has; of the rates, as many as there are at least."""
        count = dict.fromkeys((RATE, CORE_PART, FAMILY_PART), 0)
        tuned = set()
        for part, cell, loss, _ in self._wanted():
            count[part] += 1
            if loss != BASE:
                tuned.add((cell.group, loss))
        return {**count, RATE: len(tuned) * len(self.rates)}

    def tried(self, group: str, loss: str, rows: Mapping[str, Row]) -> dict[float, Tried]:
        """Return what each rate that was tried led to."""
        return {rate: rates.tried(row) for rate, row in self.rows_of(group, loss, rows).items()}

    def rows_of(self, group: str, loss: str, rows: Mapping[str, Row]) -> dict[float, Row]:
        """Return the rows of the runs that choose a rate, by rate."""
        every = sorted({*self.rates, *rates.FURTHER.values()})
        runs = [Run(RATE, self._tuned_at(group), loss, rate, rates.SEED) for rate in every]
        return {run.rate: rows[run.key] for run in runs if run.key in rows}

    def _towards(self, part: str, cell: Cell, loss: str, seed: int, rows: Mapping[str, Row]) -> list[Run]:
        if loss == BASE:
            return [Run(part, cell, loss, 0.0, seed)]
        tried = self.tried(cell.group, loss, rows)
        rate = rates.chosen(tried, self.rates)
        if rate is not None:
            return [Run(part, cell, loss, rate, seed)]
        at = self._tuned_at(cell.group)
        return [Run(RATE, at, loss, one, rates.SEED) for one in rates.missing(tried, self.rates)]

    def _tuned_at(self, group: str) -> Cell:
        return next(cell for cell in self.cells if cell.group == group and cell.tuned_here)

    def _wanted(self) -> Iterator[tuple[str, Cell, str, int]]:
        """Yield part, cell, loss and seed: a first seed of everything, plain cells first; then more."""
        for place, seed in enumerate(self.seeds):
            yield from self._core(seed)
            if place < FAMILY_SEEDS:
                yield from self._family(seed)

    def _core(self, seed: int) -> Iterator[tuple[str, Cell, str, int]]:
        for cell in sorted(self.cells, key=lambda cell: not cell.plain):
            ends = tuple(ENDS) if not cell.prior.ends else ()
            for loss in (*self.core, *ends, BASE):
                yield CORE_PART, cell, loss, seed

    def _family(self, seed: int) -> Iterator[tuple[str, Cell, str, int]]:
        for cell in (cell for cell in self.cells if cell.telling):
            for loss in self.family:
                yield FAMILY_PART, cell, loss, seed
