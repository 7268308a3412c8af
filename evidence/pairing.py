"""Runs are compared only if they began from the same base model, at the rates that the rule chose."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from evidence import rates
from evidence.grid import CORE_PART, FAMILY_PART, Grid
from evidence.losses import BASE
from evidence.offline.grid import FURTHER, OfflineGrid
from evidence.offline.grid import PART as OFFLINE
from evidence.rows import Row

ASIDE = "unpaired"
"""The folder, beside the rows, of those that are no pair of the others."""


def outdated(rows: Mapping[str, Row], grid: Grid, offline: OfflineGrid) -> list[str]:
    """Return the keys of reported rows at a rate that is not the one chosen, since a run that chose was made again."""
    groups, found = {cell.name: cell.group for cell in grid.cells}, []
    for row in rows.values():
        if row["part"] not in (CORE_PART, FAMILY_PART, OFFLINE) or row["loss"] == BASE or row["seed"] == rates.SEED:
            continue
        if row["part"] == OFFLINE:
            rate = rates.chosen(offline.tried(row["loss"], rows), offline.rates, FURTHER)
        else:
            rate = rates.chosen(grid.tried(groups[row["cell"]], row["loss"], rows), grid.rates)
        if rate is not None and row["rate"] != rate:
            found.append(row["key"])
    return found


def unpaired(rows: Mapping[str, Row]) -> list[str]:
    """Return the keys of rows that began from another base than the last one made of the same cell and seed.

    Args:
        rows: by key, in the order in which they were made.
    """
    groups: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows.values():
        part = CORE_PART if row["part"] == FAMILY_PART else row["part"]
        if _base(row) is not None:
            groups[part, row["cell"], row["seed"]].append(row)
    return [row["key"] for group in groups.values() for row in group if _base(row) != _base(group[-1])]


def _base(row: Row) -> str | None:
    # The demonstrations of a cell and seed are the same, so that what a base makes of them tells it apart.
    before = row.get("before") if row["part"] != "real" else None
    return str(before["nll"]) if before else row.get("base")


def set_aside(folder: Path, keys: list[str]) -> None:
    """Move rows into the folder of those that are no pair; the runs are made again by the next `run`."""
    for path in sorted(folder.glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        moved = [line for line in lines if json.loads(line)["key"] in keys]
        if not moved:
            continue
        aside = folder / ASIDE / path.name
        aside.parent.mkdir(exist_ok=True)
        with aside.open("a", encoding="utf-8") as file:
            file.writelines(moved)
        path.write_text("".join(line for line in lines if line not in moved), encoding="utf-8")
