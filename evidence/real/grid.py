"""The runs of a real model, in order."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from evidence.losses import CORE
from evidence.real import configs, own, questions, replies, training
from evidence.real.configs import CONFIGS, Host, Tuning
from evidence.real.questions import Question, Shown
from evidence.real.training import Length
from evidence.rows import Row

PART, PROBED = "real", "real-probe"
LOSSES = ("SFT", "DFT", "alpha 0.5", "EAFT")
BASE = "base"
OWN = 400
"""Questions that the model replies to by itself."""

TARGETS = 2000
"""That `dft probe` looks at, of the demonstrations of the first seed."""

Model = Callable[[Path], object]
"""Puts the model into a folder, where it is not there yet."""


@dataclass(frozen=True)
class RealRun:
    """The dials of a run.

    Attributes:
        shown: demonstrations.
        tuning: adapters, or all of the model.
        loss: its name, or `BASE`.
        seed: of wrong demonstrations, adapters, order and sampling.
        length: how long.
        model: where the model comes from.
        host: that trains.
    """

    shown: Shown
    tuning: Tuning
    loss: str
    seed: int
    length: Length
    model: Model = field(compare=False)
    host: Host = "TRL"

    part = PART

    @property
    def key(self) -> str:
        """A name: a run of the same name is the same run."""
        return f"{PART} | {self.cell} | {self.loss} | {configs.RATES[self.tuning]:g} | {self.seed}"

    @property
    def cell(self) -> str:
        """What the tables call it."""
        by = "" if self.host == "TRL" else f", by {self.host}"
        return f"{self.shown.kind}, {self.shown.wrong:.0%} wrong, {self.tuning}{by}"

    def execute(self, scale: Any, bases: Path, wait: Callable[[], None]) -> Row:
        """Train and ask, and return the row; what was trained is removed.

        Args:
            scale: of the study, of no use here.
            bases: a folder, of which the model gets one.
            wait: is called before the training and before the questions.
        """
        del scale
        model = bases / "real"
        self.model(model)
        folder = bases / f"run-{hashlib.sha256(self.key.encode()).hexdigest()[:12]}"
        wait()
        began = time.monotonic()
        try:
            logs = self._trained(model, folder)
            wait()
            trained = replies.checkpoint(folder / "out") if logs else None
            accuracy = self._asked(*replies.load(model, trained))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return {
            "key": self.key,
            "part": PART,
            "cell": self.cell,
            "loss": self.loss,
            "rate": configs.RATES[self.tuning],
            "seed": self.seed,
            "before": {"mean_prob": logs[0]["dft/mean_prob"]} if logs else {},
            "accuracy": accuracy,
            "logs": logs,
            "seconds": [round(time.monotonic() - began)],
            "dials": {**asdict(self.shown), "tuning": self.tuning, "host": self.host, **asdict(self.length)},
            "setting": CORE.get(self.loss),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    def _trained(self, model: Path, folder: Path) -> list[dict[str, Any]]:
        if self.loss == BASE:
            return []
        threads = torch.get_num_threads()
        logs = training.train(folder, self.written(model, folder), threads, *configs.words(self.host, threads))
        return json.loads(json.dumps(logs))

    def written(self, model: Path, folder: Path) -> dict[str, Any]:
        """Write the data into a new folder, and return the config."""
        shutil.rmtree(folder, ignore_errors=True)
        questions.write(folder, self._demonstrations(model))
        made = configs.Training(model, folder, CORE[self.loss], self.tuning, self.length, self.seed)
        return CONFIGS[self.host](made)

    def _questions(self) -> list[Question]:
        return self.shown.demonstrations(self.length.steps * self.length.rows, self.seed)

    def _demonstrations(self, model: Path) -> list[Question]:
        asked, length = self._questions(), self.length
        if self.shown.kind != "own replies":
            return asked
        return own.demonstrations(model, asked[:OWN], self.shown.wrong, len(asked), length.tokens, self.seed)

    def _asked(self, model: Any, tokenizer: Any) -> dict[str, float]:
        asked = self.shown.held_out(self.length.questions, self._questions())
        return {
            f"taught@{heat:g}": replies.accuracy(model, tokenizer, asked, heat, self.length.tokens, self.seed)
            for heat in (0.0, 1.0)
        }


@dataclass(frozen=True)
class RealProbe:
    """What `dft probe` says before a training.

    Attributes:
        before: the training.
    """

    before: RealRun

    part = PART

    @property
    def key(self) -> str:
        """A name: a run of the same name is the same run."""
        return f"{PROBED} | {self.before.cell}"

    def execute(self, scale: Any, bases: Path, wait: Callable[[], None]) -> Row:
        """Look, and return the row."""
        del scale
        model, folder = bases / "real", bases / f"run-{hashlib.sha256(self.key.encode()).hexdigest()[:12]}"
        self.before.model(model)
        wait()
        began = time.monotonic()
        try:
            found = training.probe(folder, self.before.written(model, folder), torch.get_num_threads(), TARGETS)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return {
            "key": self.key,
            "part": PROBED,
            "cell": self.before.cell,
            "seed": self.before.seed,
            "found": {name: round(number, 6) for name, number in found.items()},
            "seconds": [round(time.monotonic() - began)],
        }


@dataclass(frozen=True)
class RealGrid:
    """The part of the study that trains a real model.

    Attributes:
        model: where it comes from.
        length: how long a training is.
        seeds: that are reported.
        cells: what is shown, and how it is trained.
        host: that trains; all runs are TRL's, and the others repeat one.
    """

    model: Model
    length: Length = field(default_factory=Length)
    seeds: tuple[int, ...] = (1, 2, 3)
    cells: tuple[tuple[Shown, Tuning], ...] = (
        (Shown("answer alone", 0.4), "LoRA"),
        (Shown("facts", 0.0), "LoRA"),
        (Shown("worked out", 0.4), "LoRA"),
        (Shown("own replies", 0.0), "LoRA"),
        (Shown("answer alone", 0.4), "full"),
    )
    host: Host = "TRL"

    def pending(self, rows: Mapping[str, Row], part: str | None = None) -> list[RealProbe | RealRun]:
        """Return the looks and runs that are left, a first seed of all before the others."""
        del part
        if self.host != "TRL":
            shown, tuning = self.cells[0]
            once = RealRun(shown, tuning, "DFT", self.seeds[0], self.length, self.model, self.host)
            return [once] if once.key not in rows else []
        looks = [
            RealProbe(RealRun(shown, tuning, "DFT", self.seeds[0], self.length, self.model))
            for shown, tuning in self.cells
            if tuning == "LoRA"
        ]
        runs = [
            RealRun(shown, tuning, loss, seed, self.length, self.model)
            for seed in self.seeds
            for shown, tuning in self.cells
            for loss in (*LOSSES, BASE)
        ]
        return [run for run in (*looks, *runs) if run.key not in rows]
