"""What the rows say of the offline part: a table for each cell, and how what was supposed beforehand fares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import mean

from evidence import rates
from evidence.intervals import paired
from evidence.losses import BASE
from evidence.offline.grid import CELLS, FURTHER, PART, OfflineGrid
from evidence.offline.methods import METHODS
from evidence.rows import Row
from evidence.study import Estimate, Measure, accuracy, word
from evidence.tables import TOOK, markdown, percent


@dataclass(frozen=True)
class Supposed:
    """One method is not behind another, or is ahead of it.

    Attributes:
        first: a method.
        second: another.
        measured: by what, in words.
        measure: of a row.
    """

    first: str
    second: str
    measured: str
    measure: Measure


def passed(k: int) -> Measure:
    """Return the measure pass@k."""
    return lambda row: float(row["passes"][f"pass@{k}"])


_SAMPLED = ("sampled at temperature 1", accuracy("taught@1"))

SUPPOSED = (
    Supposed("DFT", "RFT", *_SAMPLED),
    Supposed("DFT", "GRPO", *_SAMPLED),
    Supposed("DFT", "DPO", *_SAMPLED),
    Supposed("DFT, iterated", "DFT", *_SAMPLED),
    Supposed("alpha 0.5", "DFT", *_SAMPLED),
    Supposed("DFT", "RFT", "greedy", accuracy("taught@0")),
    Supposed("DFT", "RFT", "pass@16", passed(16)),
)
"""What README.md says of the first and the second: the first is not behind by more than half a point."""


def _by_seed(rows: Mapping[str, Row], cell: str, method: str) -> dict[int, Row]:
    found = [
        row
        for row in rows.values()
        if row["part"] == PART and row["cell"] == cell and row["loss"] == method and row["seed"] != rates.SEED
    ]
    return {row["seed"]: row for row in sorted(found, key=lambda row: row["seed"])}


def _cells(rows: Mapping[str, Row]) -> list[str]:
    there = dict.fromkeys(row["cell"] for row in rows.values() if row["part"] == PART and row["seed"] != rates.SEED)
    known = [cell.name for cell in CELLS if cell.name in there]
    return known + [cell for cell in there if cell not in known]


def sampled(rows: Mapping[str, Row], cell: str, methods: Iterable[str]) -> dict[str, Estimate]:
    """Return the accuracy of methods at temperature 1, of those that have a run."""
    found = {
        method: [row["accuracy"]["taught@1"] for row in _by_seed(rows, cell, method).values()] for method in methods
    }
    return {method: made for method, shares in found.items() if (made := Estimate.of(shares))}


_SPENT: Mapping[str, Callable[[Row], float]] = {
    "answers sampled": lambda row: row["spent"]["sampled"],
    "of them right, or pairs": lambda row: row["spent"]["kept"],
    "answers trained on": lambda row: row["spent"]["trained"],
    "tokens of these": lambda row: row["spent"]["trained_tokens"],
    "seconds of a core": lambda row: row["seconds"][0],
}


def tables(rows: Mapping[str, Row]) -> str:
    """Return a table for each cell; nothing for no rows."""
    return "\n\n".join(f"*{cell}*\n\n{_table(rows, cell)}" for cell in _cells(rows))


def _table(rows: Mapping[str, Row], cell: str) -> str:
    lines = []
    for method in (BASE, *METHODS):
        found = list(_by_seed(rows, cell, method).values())
        if not found:
            continue
        right = [percent(Estimate.of(accuracy(name)(row) for row in found)) for name in TOOK.values()]
        many = percent(Estimate.of(passed(max(_ks(found)))(row) for row in found))
        longer = percent(Estimate.of(accuracy("longer@0")(row) for row in found))
        spent = ["" if method == BASE else f"{mean(map(one, found)):,.0f}" for one in _SPENT.values()]
        rate = "" if method == BASE else f"{found[0]['rate']:g}"
        name = "before training" if method == BASE else method
        lines.append([name, rate, str(len(found)), *right, many, longer, *spent])
    head = ["", "rate", "seeds", "greedy", "sampled at 1", "pass@16", "longer sums, greedy", *_SPENT]
    return markdown(head, lines)


def _ks(rows: list[Row]) -> list[int]:
    return [int(name.partition("@")[2]) for name in rows[0]["passes"]]


def supposed(rows: Mapping[str, Row]) -> str:
    """Return how each supposition fares in each cell; nothing for no rows."""
    lines = []
    for one in SUPPOSED:
        said = [f"{cell}: {found}" for cell in _cells(rows) if (found := _fares(rows, cell, one))]
        if said:
            lines.append(f"- *{one.first}* is not behind *{one.second}*, {one.measured}: {'; '.join(said)}")
    return "\n".join(lines)


def _fares(rows: Mapping[str, Row], cell: str, one: Supposed) -> str | None:
    first, second = _by_seed(rows, cell, one.first), _by_seed(rows, cell, one.second)
    seeds = [seed for seed in first if seed in second]
    if not seeds or any("pass@16" not in first[seed]["passes"] for seed in seeds):
        return None
    shares = [[one.measure(rows_of[seed]) for seed in seeds] for rows_of in (first, second)]
    if {share for of_one in shares for share in of_one} == {1.0}:
        return "both at 100 with all seeds, which tells nothing"
    middle, half = paired(*shares)
    found = Estimate(middle, half, len(seeds))
    return f"{percent(found, '+')}, {word(found)}"


def chosen(rows: Mapping[str, Row]) -> str:
    """Return what each rate led to with the seed that chose; nothing for no rows."""
    grid, lines = OfflineGrid(), []
    for method in METHODS:
        tried = grid.tried(method, rows)
        if tried:
            rate = rates.chosen(tried, grid.rates, FURTHER)
            each = ", ".join(f"{one:g}: {100 * found.accuracy:.1f}" for one, found in sorted(tried.items()))
            lines.append([method, "" if rate is None else f"{rate:g}", each])
    return markdown(["", "chosen", "mean of greedy and sampled accuracy by rate"], lines) if lines else ""


def so_far(rows: Mapping[str, Row]) -> str:
    """Return how much of the part there is."""
    made = sum(row["part"] == PART and row["seed"] != rates.SEED for row in rows.values())
    planned = OfflineGrid().planned()
    if not made:
        return ""
    return f"Of the {planned} runs that are reported, {min(made, planned)} are there."
