"""What `dft probe` finds in each cell before training: its own code, without a trainer around it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dft_plugin.hf.probing import Compared, Probe, looking
from dft_plugin.hf.tokens import kinds_of_tokens
from dft_plugin.plans import plan_for
from evidence.cells import Cell, cells
from evidence.losses import BASE
from evidence.model import batch
from evidence.rows import Row
from evidence.run import Scale
from evidence.training import Wait

PART = "probe"
TARGETS = 20_000
"""That `dft probe` looks at."""


@dataclass(frozen=True)
class ProbeRun:
    """The dials of a look.

    Attributes:
        cell: what is known, and what is demonstrated.
        seed: of the base model and the demonstrations.
    """

    cell: Cell
    seed: int

    part = PART

    @property
    def key(self) -> str:
        """A name: a run of the same name is the same run."""
        return f"{PART} | {self.cell.name} | {self.seed}"

    def execute(self, scale: Scale, folder: Path, wait: Wait) -> Row:
        """Look, and return the row.

        Args:
            scale: of the batches.
            folder: of the base models.
            wait: as in `training.fit`.
        """
        model = self.cell.prior.model(self.seed, folder, wait)
        began = time.process_time()
        examples = self.cell.demonstrations.draw(self.seed)
        found = Probe({}, kinds_of_tokens(model, None))
        with looking(model, plan_for(Compared())) as attached, torch.no_grad():
            for at in range(0, len(examples), scale.rows):
                inputs = batch(examples[at : at + scale.rows])
                found.add(attached.score(model, inputs, want_logits=False).result)
                if found.bands.tokens >= TARGETS:
                    break
        return {
            "key": self.key,
            "part": PART,
            "cell": self.cell.name,
            "loss": BASE,
            "rate": 0.0,
            "seed": self.seed,
            "found": {name: round(number, 6) for name, number in found.finding().items()},
            "seconds": [round(time.process_time() - began, 1)],
        }


@dataclass(frozen=True)
class ProbeGrid:
    """A look into each cell.

    Attributes:
        cells: as in the study.
        seeds: that are reported.
    """

    cells: tuple[Cell, ...] = cells()
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)

    def pending(self, rows: Mapping[str, Row], part: str | None = None) -> list[ProbeRun]:
        """Return the looks that are left."""
        del part
        every = [ProbeRun(cell, seed) for seed in self.seeds for cell in self.cells]
        return [run for run in every if run.key not in rows]


def findings(rows: Mapping[str, Row], cell: str) -> dict[int, dict[str, Any]]:
    """Return what was found in a cell, by seed."""
    return {row["seed"]: row["found"] for row in rows.values() if row["part"] == PART and row["cell"] == cell}
