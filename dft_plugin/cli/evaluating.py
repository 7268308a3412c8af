"""`dft evaluate`: a model, or what was trained of it, on the evaluation data of a config."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dft_plugin.cli.checking import Report, check
from dft_plugin.cli.sampling import model_key
from dft_plugin.config import trained as folders
from dft_plugin.config.hosts import Launch
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.config.reading import LOSS, load
from dft_plugin.config.settings import Settings
from dft_plugin.config.trained import Trained
from dft_plugin.errors import ConflictError, SettingsError
from dft_plugin.runs.table import TITLES

if TYPE_CHECKING:
    from dft_plugin.hf.evaluating import Evaluation

_OUTPUT = "output_dir"
"""What every host calls the folder that a run writes."""

_FIRST = {
    "dft/loss": "loss, the mean over all targets",
    "dft/nll": TITLES["nll"],
    "dft/mean_prob": TITLES["mean_prob"],
    "dft/top1": TITLES["top1"],
    "loss": "loss, as the log of a run has it",
}
"""What is shown first, in words; the trainers of some hosts average over batches, whatever these hold."""


@dataclass(frozen=True)
class Asked:
    """What stands on the command line.

    Attributes:
        path: the config.
        overrides: `key=value`.
        host: which host it is for; None: its keys say it.
        checkpoint: a folder with trained weights; None: the model that the config names.
        out: a file to write the numbers to; None: none.
        as_json: whether JSON is printed.
    """

    path: Path
    overrides: Sequence[str]
    host: str | None
    checkpoint: Path | None
    out: Path | None
    as_json: bool


def run(asked: Asked) -> int:
    """Evaluate, and print. Returns the exit code.

    Raises:
        DftError: it cannot be done; says what to do instead.
    """
    if asked.out is not None and asked.out.exists():
        raise SettingsError([f"--out {asked.out} is there already, and stays as it is. Name another file."])
    if asked.out is not None and not os.access(asked.out.parent, os.W_OK):
        # Not after the minutes that it takes.
        raise SettingsError([f"--out {asked.out} cannot be written: {asked.out.parent} is no folder of yours."])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConflictError(["`dft evaluate` runs in one process, with the whole model. Leave out launchers."])
    trained = None if asked.checkpoint is None else folders.find(asked.checkpoint)
    report = check(asked.path, _words(asked, trained), asked.host)
    if not report.ok or report.settings is None:
        raise ConflictError(report.obstacles())
    if report.version_problem:
        typer.echo(f"dft: {report.version_problem}", err=True)
    done = _evaluate(report, report.settings, trained)
    found = _as_json(asked, report, done, trained)
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if asked.as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _print(asked, done)
    return 0


def _words(asked: Asked, trained: Trained | None) -> list[str]:
    """Return the overrides, and what of the trained weights takes the place of a key."""
    words = [*asked.overrides]
    if trained is None:
        return words
    config = load(asked.path, words)
    if not config.names_loss and trained.loss is not None:
        # Where nobody says it, the loss that was trained is meant.
        words.append(f"{LOSS}={json.dumps(trained.loss)}")
    if not trained.is_adapter:
        words.append(f"{model_key(asked.path, config.host, '--checkpoint')}={trained.folder}")
    return words


def _evaluate(report: Report, settings: Settings, trained: Trained | None) -> Evaluation:
    catalogue = build_catalogue()
    columns = sorted(catalogue.columns(settings))
    log = tuple(dict.fromkeys((*settings.log, "top1")))
    settings = settings.model_copy(update={"log": log})
    kept = [(key, text) for key, text in report.config.overrides if key != _OUTPUT]
    with tempfile.TemporaryDirectory() as folder:
        # Hosts write into it already when they make a trainer.
        launch = Launch(str(report.config.path), [*kept, (_OUTPUT, folder)], settings)
        # It loads torch: not before what can be said without.
        trainer = report.host.evaluator(launch, columns)
        from dft_plugin.hf.evaluating import evaluate

        return evaluate(trainer, settings.as_written(), trained, report.host.held_out)


def _as_json(asked: Asked, report: Report, done: Evaluation, trained: Trained | None) -> dict[str, Any]:
    record = None if trained is None else trained.record
    return {
        "config": str(asked.path),
        "host": report.host.name,
        "checkpoint": None if asked.checkpoint is None else str(asked.checkpoint),
        "step": None if trained is None else trained.step,
        "trained_with": None if record is None else record.get("in_words"),
        "loss": done.loss,
        "rows": dict(done.rows),
        "notes": list(done.notes),
        "sets": {name: dict(numbers) for name, numbers in done.sets.items()},
    }


def _print(asked: Asked, done: Evaluation) -> None:
    # The bar of a host has left the cursor behind it.
    typer.echo("", err=True)
    typer.echo(f"weights: {asked.checkpoint or f'those that {asked.path} names'}")
    heads = [f"{name}, {done.rows[name]:,} rows" if name in done.rows else name for name in done.sets]
    table = Table("", *map(escape, heads), title=f"evaluated with {escape(done.loss)}")
    for key in _order(done.sets):
        values = [numbers.get(key) for numbers in done.sets.values()]
        table.add_row(Text(_FIRST.get(key, key)), *("" if value is None else f"{value:.6g}" for value in values))
    Console().print(table)
    for note in done.notes:
        typer.echo(f"note: {note}")


def _order(sets: Mapping[str, Mapping[str, float]]) -> list[str]:
    every = dict.fromkeys(key for numbers in sets.values() for key in numbers)
    return [*(key for key in _FIRST if key in every), *(key for key in every if key not in _FIRST)]
