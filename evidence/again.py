"""One run of the study made again, beside its row: for someone who doubts it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evidence.cells import Cell
from evidence.grid import CORE_PART, FAMILY_PART, RATE
from evidence.rows import Row
from evidence.run import Run, Scale
from evidence.tables import markdown


def run_of(row: Row, cells: tuple[Cell, ...]) -> Run:
    """Return the run that a row is of.

    Raises:
        ValueError: it is of another part than rates, core and family.
    """
    if row["part"] not in (RATE, CORE_PART, FAMILY_PART):
        raise ValueError(f"{row['key']} is of the part {row['part']}; runs of rates, core and family are made again")
    cell = next(cell for cell in cells if cell.name == row["cell"])
    return Run(row["part"], cell, row["loss"], row["rate"], row["seed"])


def beside(key: str, rows: Mapping[str, Row], cells: tuple[Cell, ...], scale: Scale, folder: Path) -> str:
    """Make a run again, and return both results as a table.

    Args:
        key: of the row.
        rows: that are there.
        cells: of the grid.
        scale: how large.
        folder: of the base models.

    Raises:
        KeyError: there is no such row; says which keys are near.
        ValueError: as in `run_of`.
    """
    if key not in rows:
        near = [one for one in rows if key.split(" | ")[1:2] == one.split(" | ")[1:2]][:5]
        raise KeyError(
            f"no row {key!r}; " + (f"there are {', '.join(map(repr, near))}" if near else "see evidence/rows")
        )
    row = rows[key]
    again = run_of(row, cells).execute(scale, folder, lambda: None)
    lines = [
        [name, f"{100 * was:.1f}", f"{100 * again['accuracy'][name]:.1f}"] for name, was in row["accuracy"].items()
    ]
    lines.append(["base", row.get("base", "not kept"), again["base"]])
    return markdown(["%", "the row", "again"], lines)
