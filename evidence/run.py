"""One run: dials in, a row of numbers out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from torch import Tensor

from dft_plugin.objectives.base import Objective
from evidence import measures
from evidence.cells import Cell
from evidence.losses import BASE, LOSSES
from evidence.model import batch
from evidence.tasks import Example
from evidence.training import Schedule, Wait, fit

LOGGED = ("loss", "nll", "mean_prob")
"""What is kept of the log: over each tenth of the steps."""


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        steps: of a fine-tuning.
        rows: of a batch.
        tests: problems of a kind.
        samples: of a problem, where pass@k is measured, and problems for that.
    """

    steps: int = 300
    rows: int = 32
    tests: int = 200
    samples: tuple[int, int] = (64, 50)


@dataclass(frozen=True)
class Run:
    """The dials of a run.

    Attributes:
        part: of the study.
        cell: what is known, and what is demonstrated.
        loss: its name in `losses`, or `BASE`.
        rate: the learning rate.
        seed: of everything.
    """

    part: str
    cell: Cell
    loss: str
    rate: float
    seed: int

    @property
    def key(self) -> str:
        """A name: a run of the same name is the same run."""
        return f"{self.part} | {self.cell.name} | {self.loss} | {self.rate:g} | {self.seed}"

    @property
    def dials(self) -> dict[str, Any]:
        """How they stood, for the row."""
        return {"prior": asdict(self.cell.prior), **asdict(self.cell.demonstrations)}

    def execute(self, scale: Scale, folder: Path, wait: Wait) -> dict[str, Any]:
        """Train and measure, and return the row.

        Args:
            scale: how large.
            folder: of the base models.
            wait: as in `training.fit`.
        """
        model = self.cell.prior.model(self.seed, folder, wait)
        began = time.process_time()
        base = {name: weight.clone() for name, weight in model.state_dict().items()}
        examples = self.cell.demonstrations.draw(self.seed)
        before = measures.likelihood(model, examples[: scale.tests])
        logs: list[dict[str, float]] = []
        torch.manual_seed(self.seed)
        if self.loss != BASE:
            schedule = Schedule(scale.steps, scale.rows, self.rate)
            logs = fit(model, self._batches(examples, scale.rows), schedule, LOSSES[self.loss], wait)
        trained = time.process_time() - began
        row = {
            "key": self.key,
            "part": self.part,
            "cell": self.cell.name,
            "loss": self.loss,
            "rate": self.rate,
            "seed": self.seed,
            "before": before,
            **self._measured(model, examples[: scale.tests], scale, wait),
            "distance": measures.distance(model, base),
            "base": measures.fingerprint(base),
            "logs": {name: [round(log[f"dft/{name}"], 4) for log in logs] for name in LOGGED if logs},
            "seconds": [round(trained, 1), round(time.process_time() - began, 1)],
            "dials": self.dials,
            "setting": _as_json(LOSSES.get(self.loss)),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        return json.loads(json.dumps(row))

    def _measured(self, model: Any, demonstrated: list[Example], scale: Scale, wait: Wait) -> dict[str, Any]:
        tests = self.cell.demonstrations.tests(scale.tests)
        wait()
        found = {
            "accuracy": measures.accuracies(model, tests, self.seed),
            "after": measures.likelihood(model, demonstrated),
            "right": measures.likelihood(model, tests["taught"]),
        }
        if self.cell.telling and self.seed:
            wait()
            samples, problems = scale.samples
            found["passes"] = measures.passes(model, tests["taught"][:problems], samples, self.seed)
        return found

    def _batches(self, examples: list[Example], rows: int) -> Iterator[dict[str, Tensor]]:
        rng = Random(f"order {self.seed}")
        while True:
            yield batch([rng.choice(examples) for _ in range(rows)])


def _as_json(setting: Any) -> Any:
    return {"name": setting.name, **setting.model_dump()} if isinstance(setting, Objective) else setting
