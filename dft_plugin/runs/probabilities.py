"""How many targets were how likely, first and last: what a run has left in `dft_probabilities.jsonl`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dft_plugin.config import jsons

FILE = "dft_probabilities.jsonl"
"""Stands in the output folder of a run; a line for each interval or evaluation that was counted."""

FORMAT = 1
"""Of a line; one of a format that is newer than this program is left out."""

COARSE = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)
"""Ends of the bands of a table: few enough to be read."""

TWENTIETHS = tuple(round(0.05 * step, 2) for step in range(21))
"""Ends of the bands of a figure: of one width."""

TRAINING = "training"
"""What a line is of, where it is no evaluation."""


@dataclass(frozen=True)
class Histogram:
    """How many targets were in which band of probability.

    Attributes:
        of: `training`, or the prefix of an evaluation's metrics.
        step: of the run.
        edges: ends of the bands, from 0 to 1.
        counts: of each band, one fewer.
    """

    of: str
    step: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """How many targets there were."""
        return sum(self.counts)

    def shares(self, edges: Sequence[float]) -> list[float]:
        """Return the share of the targets in coarser bands.

        Args:
            edges: of these, each an edge of the histogram's own.
        """
        inside = list(zip(pairwise(self.edges), self.counts, strict=True))
        return [
            sum(count for (start, end), count in inside if low <= start and end <= high) / self.tokens
            for low, high in pairwise(edges)
        ]


@dataclass(frozen=True)
class Change:
    """The same targets, or others of the same kind, when they were first counted and when last.

    Attributes:
        before: the first that was counted.
        after: the last; later than that.
    """

    before: Histogram
    after: Histogram

    @property
    def of(self) -> str:
        """Of which targets."""
        return self.before.of


def load(folders: Iterable[Path]) -> tuple[Histogram, ...]:
    """Return what the first of these folders that has the file says, by steps; of a step counted twice, the last."""
    for folder in folders:
        path = folder / FILE
        if path.is_file():
            found = {(one.of, one.step): one for one in _read(path)}
            return tuple(sorted(found.values(), key=lambda one: one.step))
    return ()


def changes(histograms: Sequence[Histogram]) -> list[Change]:
    """Return the first and the last of each kind that was counted twice."""
    by_kind: dict[str, list[Histogram]] = {}
    for one in histograms:
        by_kind.setdefault(one.of, []).append(one)
    return [Change(every[0], every[-1]) for every in by_kind.values() if len(every) > 1]


def kinds(runs: Sequence[Sequence[Histogram]]) -> list[str]:
    """Return of what any of these runs has a before and an after; evaluations, of the same targets, first."""
    found = dict.fromkeys(change.of for histograms in runs for change in changes(histograms))
    return sorted(found, key=lambda of: of == TRAINING)


def change_of(histograms: Sequence[Histogram], of: str) -> Change | None:
    """Return the change of one kind; None where there is none."""
    return next((change for change in changes(histograms) if change.of == of), None)


def _read(path: Path) -> Iterator[Histogram]:
    # A run that was broken off may leave half a line behind, with others of its resumption after it.
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = jsons.parsed(line)
        except ValueError:
            continue
        if _is_one(found):
            yield Histogram(found["of"], int(found["step"]), tuple(found["edges"]), tuple(found["counts"]))


def _is_one(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("of"), str) or not isinstance(found.get("step"), int):
        return False
    if found.get("format", FORMAT) != FORMAT:
        return False
    edges, counts = found.get("edges"), found.get("counts")
    if not isinstance(edges, list) or not isinstance(counts, list) or len(edges) != len(counts) + 1:
        return False
    return all(isinstance(number, (int, float)) for number in (*edges, *counts)) and sum(counts) > 0
