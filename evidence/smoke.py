"""The study at a size at which nothing is learned: it shows that everything runs."""

from __future__ import annotations

from dataclasses import replace

from evidence.cells import Cell, cells
from evidence.grid import Grid
from evidence.model import Size
from evidence.offline.asking import Budget
from evidence.offline.grid import CELLS, OfflineGrid
from evidence.run import Scale
from evidence.tasks import UNSEEN

_SIZE = Size(hidden=24, layers=1)


def _small(cell: Cell) -> Cell:
    return replace(
        cell,
        telling=cell.telling and cell.prior.unseen_style == 0.0 and cell.demonstrations.style == UNSEEN,
        prior=replace(cell.prior, steps=2, size=_SIZE),
    )


def _one_of_each_group() -> tuple[Cell, ...]:
    found = {cell.group: cell for cell in cells() if cell.tuned_here}
    return tuple(_small(cell) for cell in found.values())


SMOKE_SCALE = Scale(steps=3, rows=4, tests=4, samples=(4, 2))
SMOKE_GRID = Grid(_one_of_each_group(), seeds=(1, 2), rates=(1e-3,), core=("SFT", "DFT", "alpha 0.5"))
SMOKE_OFFLINE = OfflineGrid(
    tuple(replace(cell, prior=replace(cell.prior, steps=2, size=_SIZE)) for cell in CELLS[:1]),
    seeds=(1,),
    rates=(3e-4,),
    budget=Budget(questions=4, tries=2, rows=4, rounds=2, passes=(2, 2)),
)
