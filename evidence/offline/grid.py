"""The runs of the offline part: cells, methods, seeds, and the rates that come first."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from evidence import measures, rates
from evidence.cells import FULL
from evidence.demonstrations import Demonstrations
from evidence.losses import BASE
from evidence.offline.asking import Budget
from evidence.offline.methods import METHODS, Spent, Training, described
from evidence.prior import Prior
from evidence.rates import Tried
from evidence.rows import Row
from evidence.run import Scale
from evidence.training import Wait

PART = "offline"

RATES = (1e-4, 3e-4, 1e-3)
FURTHER = {1e-4: 3e-5, 1e-3: 3e-3}
"""Tried at first, and besides where the best is at an end: a step below those of the study, which trains longer."""


@dataclass(frozen=True)
class OfflineCell:
    """What the model knows beforehand; all of them are asked sums.

    Attributes:
        name: of the cell.
        prior: what is known.
    """

    name: str
    prior: Prior


CELLS = (
    OfflineCell("offline, well learned", FULL),
    OfflineCell("offline, less learned", replace(FULL, steps=1200)),
)


@dataclass(frozen=True)
class OfflineRun:
    """The dials of a run.

    Attributes:
        cell: what is known.
        method: its name, or `BASE`.
        rate: the learning rate.
        seed: of everything.
        budget: what may be spent.
    """

    cell: OfflineCell
    method: str
    rate: float
    seed: int
    budget: Budget = field(default_factory=Budget)

    part = PART

    @property
    def key(self) -> str:
        """A name: a run of the same name is the same run."""
        return f"{PART} | {self.cell.name} | {self.method} | {self.rate:g} | {self.seed}"

    @property
    def dials(self) -> dict[str, Any]:
        """How they stood, for the row."""
        return {"prior": asdict(self.cell.prior), **asdict(self.budget)}

    def execute(self, scale: Scale, folder: Path, wait: Wait) -> Row:
        """Sample, train and measure, and return the row.

        Args:
            scale: how many problems are tests.
            folder: of the base models.
            wait: returns when work may go on.
        """
        model = self.cell.prior.model(self.seed, folder, wait)
        began = time.process_time()
        base = {name: weight.clone() for name, weight in model.state_dict().items()}
        spent = self._train(model, folder, wait)
        trained = time.process_time() - began
        tests, (samples, problems) = Demonstrations().tests(scale.tests), self.budget.passes
        wait()
        row = {
            "key": self.key,
            "part": PART,
            "cell": self.cell.name,
            "loss": self.method,
            "rate": self.rate,
            "seed": self.seed,
            "accuracy": measures.accuracies(model, tests, self.seed),
            "passes": measures.passes(model, tests["taught"][:problems], samples, self.seed),
            "right": measures.likelihood(model, tests["taught"]),
            "distance": measures.distance(model, base),
            "base": measures.fingerprint(base),
            "spent": asdict(spent),
            "seconds": [round(trained, 1), round(time.process_time() - began, 1)],
            "dials": self.dials,
            "setting": described(self.method),
            "versions": {name: _version(name) for name in ("torch", "transformers", "trl")},
        }
        return json.loads(json.dumps(row))

    def _train(self, model: Any, folder: Path, wait: Wait) -> Spent:
        if self.method == BASE:
            return Spent()
        own = folder / f"offline-{hashlib.sha256(self.key.encode()).hexdigest()[:12]}"
        shutil.rmtree(own, ignore_errors=True)
        torch.manual_seed(self.seed)
        try:
            return METHODS[self.method](Training(model, self.rate, self.seed, self.budget, own, wait))
        finally:
            shutil.rmtree(own, ignore_errors=True)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class OfflineGrid:
    """The part of the study in which models are trained on answers of their own.

    Attributes:
        cells: what is known; rates are chosen at the first.
        methods: by name.
        seeds: that are reported.
        rates: that are tried at first.
        budget: of each run.
    """

    cells: tuple[OfflineCell, ...] = CELLS
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (1, 2, 3)
    rates: tuple[float, ...] = RATES
    budget: Budget = field(default_factory=Budget)

    def pending(self, rows: Mapping[str, Row], part: str | None = None) -> list[OfflineRun]:
        """Return the runs that can be made now: those that choose a rate before those that need it."""
        del part
        found: dict[str, OfflineRun] = {}
        for seed in self.seeds:
            for cell in self.cells:
                for method in (BASE, *self.methods):
                    for run in self._towards(cell, method, seed, rows):
                        if run.key not in rows:
                            found.setdefault(run.key, run)
        return list(found.values())

    def planned(self) -> int:
        """Return how many runs are reported in the end."""
        return len(self.seeds) * len(self.cells) * (len(self.methods) + 1)

    def tried(self, method: str, rows: Mapping[str, Row]) -> dict[float, Tried]:
        """Return what the rates of a method led to that were tried."""
        every = sorted({*self.rates, *FURTHER.values()})
        runs = [OfflineRun(self.cells[0], method, rate, rates.SEED, self.budget) for rate in every]
        return {run.rate: rates.tried(rows[run.key]) for run in runs if run.key in rows}

    def _towards(self, cell: OfflineCell, method: str, seed: int, rows: Mapping[str, Row]) -> list[OfflineRun]:
        if method == BASE:
            return [OfflineRun(cell, BASE, 0.0, seed, self.budget)]
        tried = self.tried(method, rows)
        rate = rates.chosen(tried, self.rates, FURTHER)
        if rate is not None:
            return [OfflineRun(cell, method, rate, seed, self.budget)]
        missing = rates.missing(tried, self.rates, FURTHER)
        return [OfflineRun(self.cells[0], method, one, rates.SEED, self.budget) for one in missing]
