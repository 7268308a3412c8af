"""The logs of a run, in whatever form its host wrote them. Files are only read."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dft_plugin.config import jsons
from dft_plugin.config.record import FILE as RECORD
from dft_plugin.config.record import STATE_FILE
from dft_plugin.errors import SettingsError
from dft_plugin.runs import probabilities
from dft_plugin.runs.formats import LOOKED_FOR, STEP, Record, begins_as_verls, evaluation, is_number, records_of
from dft_plugin.runs.probabilities import Histogram

_SHOWN = 4
"""Folders that a message names."""

_NOTICED = ("loss", "dft/nll", "eval_loss", "eval_dft/nll")
"""By which two logs are found to be of one training, or of two."""


class EmptyLogError(SettingsError):
    """A run has left its state, and no line of a log in it."""


@dataclass(frozen=True)
class Run:
    """What a run logged.

    Attributes:
        name: what to call it.
        source: the file that was read.
        records: in the order of their steps.
        loss: what it was trained with, in words, as it was recorded beside its checkpoints; None: nothing was.
        written: the same as it may stand after `loss:`.
        histograms: how many targets were how likely, by steps.
        others: logs of other trainings in the same folder, which were left aside.
    """

    name: str
    source: Path
    records: tuple[Record, ...]
    loss: str | None = None
    written: Mapping[str, Any] | None = None
    histograms: tuple[Histogram, ...] = ()
    others: tuple[Path, ...] = ()

    def series(self, key: str) -> list[tuple[int, float]]:
        """Return steps and values of a key; of a step that was logged twice, as after a resumption, the last."""
        found = {int(record[STEP]): record[key] for record in self.records if key in record}
        return sorted(found.items())

    @property
    def keys(self) -> set[str]:
        """All keys that were logged."""
        return {key for record in self.records for key in record}


def load(path: Path) -> Run:
    """Read a run.

    Args:
        path: its output folder, or a log in it.

    Raises:
        EmptyLogError: the run has logged nothing.
        SettingsError: nothing is there that could be read.
    """
    if not path.exists():
        raise SettingsError([f"{path} is not there. Give the output folder of a run, or a log file in it."])
    if path.is_file() and (found := evaluation(path)) is not None:
        return Run(path.stem, path, (found.record,), found.trained_with)
    sources = [path] if path.is_file() else list(_sources(path))
    full, problems = list[tuple[Path, tuple[Record, ...]]](), list[str]()
    for source in sources:
        # One log that is damaged, or still being written, does not hide another.
        try:
            records = tuple(records_of(source))
        except SettingsError as error:
            problems += error.problems
            continue
        if records:
            full.append((source, records))
    if sources and not full and not problems:
        raise EmptyLogError([_nothing_logged(path, sources[0])])
    if not full:
        raise SettingsError(problems or [_no_log(path)])
    newest, others = _of_one_training(full)
    # A checkpoint's state ends with it, and a log beside it goes on.
    source, records = max(newest, key=lambda entry: (_last_step(entry[1]), _richness(entry[1])))
    around = list(_around(source, path))
    loss, written = (None, None) if _is_anothers(source, records) else _loss(around)
    histograms = probabilities.load(around)
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return Run(name, source, records, loss, written, histograms, others)


def named_apart(runs: Iterable[Run]) -> list[Run]:
    """Return the runs, those of one name told apart by their folders."""
    every = list(runs)
    names = [run.name for run in every]
    paths = [run.source.parent.as_posix() for run in every]
    return [
        run if names.count(run.name) == 1 else replace(run, name=path) for run, path in zip(every, paths, strict=True)
    ]


def _no_log(path: Path) -> str:
    """Say that a folder is that of no run, and of those in it which are."""
    if not path.is_dir():
        return f"{path} is no file and no folder. Give the output folder of a run."
    inside = sorted(one for one in path.iterdir() if one.is_dir() and any(_sources(one)))
    if not inside:
        return f"{path} holds no log of a run. Looked for: {LOOKED_FOR}."
    shown = " ".join(shlex.quote(str(one)) for one in inside[:_SHOWN])
    more = f" and {len(inside) - _SHOWN} more" if len(inside) > _SHOWN else ""
    return f"{path} is no run, and holds {len(inside)}: give them, {shown}{more}."


def _nothing_logged(path: Path, source: Path) -> str:
    """Say that a log is empty, and as much of why as its state tells."""
    state = jsons.read(source) if source.name == "trainer_state.json" else {}
    ends = f"ends at step {state['global_step']}, and its log is empty" if "global_step" in state else "is empty"
    every = f" (`logging_steps` was {state['logging_steps']:g})" if is_number(state.get("logging_steps")) else ""
    named = source.relative_to(path) if source != path else source.name
    return f"{path} has logged nothing: {named} {ends}{every}. Train with `logging_steps: 1`."


def _last_step(records: tuple[Record, ...]) -> float:
    return max(record[STEP] for record in records)


def _richness(records: tuple[Record, ...]) -> int:
    return len({key for record in records for key in record})


def _of_one_training(
    read: list[tuple[Path, tuple[Record, ...]]],
) -> tuple[list[tuple[Path, tuple[Record, ...]]], tuple[Path, ...]]:
    """Part the logs of the newest training in a folder from those of others, which an earlier one has left there."""
    newest = max(read, key=lambda entry: (_changed(entry[0]), _last_step(entry[1])))
    same = [entry for entry in read if entry is newest or _agree(entry[1], newest[1])]
    return same, tuple(entry[0] for entry in read if entry not in same)


def _changed(source: Path) -> float:
    files = source.glob("events.out.tfevents*") if source.is_dir() else (source,)
    return max(file.stat().st_mtime for file in files)


def _agree(one: tuple[Record, ...], other: tuple[Record, ...]) -> bool:
    """Whether two logs say the same of the steps that both have; some round."""
    sides = [
        {(key, record[STEP]): record[key] for record in records for key in _NOTICED if key in record}
        for records in (one, other)
    ]
    both = sides[0].keys() & sides[1].keys()
    apart = sum(not math.isclose(sides[0][at], sides[1][at], rel_tol=0.01, abs_tol=1e-4) for at in both)
    return 2 * apart < len(both) or not both


def _sources(folder: Path) -> Iterator[Path]:
    """Yield what may be a log of this run."""
    direct = [folder / name for name in ("trainer_state.json", "logging.jsonl", "trainer_log.jsonl")]
    yield from (path for path in direct if path.is_file())
    # A name that anybody may take.
    if begins_as_verls(folder / "log.jsonl"):
        yield folder / "log.jsonl"
    yield from [state for one in _newest_first(folder) if (state := one / "trainer_state.json").is_file()][:1]
    yield from sorted({path.parent for path in folder.rglob("events.out.tfevents*")})
    # ms-swift makes a folder for each start.
    starts = sorted((path.parent for path in folder.glob("*/logging.jsonl")), key=lambda one: one.stat().st_mtime)
    if starts:
        yield from _sources(starts[-1])


def _is_anothers(source: Path, records: tuple[Record, ...]) -> bool:
    """Whether a record beside a log is not of it: with our loss, every trainer's own log has `dft/*`."""
    keys = {key for record in records for key in record}
    return source.name in (STATE_FILE, "logging.jsonl") and "loss" in keys and not any("dft/" in key for key in keys)


def _around(source: Path, path: Path) -> Iterator[Path]:
    """Yield the folders of the run that a log is of, from the log up: never that of another run around it."""
    folder = source if source.is_dir() else source.parent
    yield folder
    inside = path if path.is_dir() else folder
    while folder != inside and inside in folder.parents:
        folder = folder.parent
        yield folder
    # A checkpoint, and the folder that TensorBoard's files stand in, are parts of a run.
    whole = folder.absolute()
    if re.fullmatch(r"checkpoint-\d+", whole.name) or whole.name == "runs":
        yield whole.parent
    elif whole.parent.name == "runs":
        yield whole.parent.parent


def _loss(around: Iterable[Path]) -> tuple[str | None, Mapping[str, Any] | None]:
    """Return what was recorded of the loss: in one line, and as it may be written after `loss:`."""
    for place in (one for folder in around for one in (folder, *_newest_first(folder))):
        path = place / RECORD
        if path.is_file():
            try:
                found = jsons.read(path)
                return str(found["in_words"]), dict(found["loss"])
            except (OSError, ValueError, KeyError, TypeError):
                return None, None
    return None, None


def _newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder: `checkpoint-N`, or verl's `global_step_N`."""
    there = [*folder.glob("checkpoint-*"), *folder.glob("global_step_*")]
    numbered = [(int(found[1]), one) for one in there if (found := re.search(r"[-_](\d+)$", one.name))]
    return [one for _, one in sorted(numbered, reverse=True)]
