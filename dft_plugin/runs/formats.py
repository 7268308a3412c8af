"""The forms in which hosts write a log down, and what `dft evaluate --out` writes. Files are only read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dft_plugin.config import jsons
from dft_plugin.errors import SettingsError

STEP = "step"

LOOKED_FOR = (
    "trainer_state.json (in the folder or its newest checkpoint), logging.jsonl, trainer_log.jsonl, verl's log.jsonl, "
    "or TensorBoard's events.out.tfevents files (verl: tensorboard_log/PROJECT/EXPERIMENT)"
)
"""For messages."""

_NO_JSON = "{} is not JSON ({}): was it cut off? Give another log of the run."

_BITS = 1000
"""Of integers that a float can hold."""

Record = Mapping[str, float]
"""One line of a log: numbers by key, `step` among them."""


@dataclass(frozen=True)
class Evaluated:
    """What `dft evaluate --out` has written.

    Attributes:
        record: its numbers under the keys that a run logs them by, the set before each: `eval_dft/nll`.
        trained_with: the loss that the weights were trained with, in words; None: nobody wrote it down.
    """

    record: Record
    trained_with: str | None


def evaluation(path: Path) -> Evaluated | None:
    """Read what `dft evaluate --out` wrote; None where a file is something else."""
    try:
        found = jsons.read(path)
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("sets"), dict):
        return None
    record = {STEP: float(found["step"]) if is_number(found.get("step")) else 0.0}
    for name, numbers in found["sets"].items():
        if isinstance(numbers, dict):
            record |= {f"{name}_{key}": float(one) for key, one in numbers.items() if is_number(one)}
    return Evaluated(record, found.get("trained_with"))


def records_of(source: Path) -> Iterator[Record]:
    """Yield the lines of a log in the order in which the run came to them.

    Raises:
        SettingsError: it cannot be read, or is no log.
    """
    if source.is_dir() or "tfevents" in source.name:
        rows: Iterable[Any] = _of_tensorboard(source)
    else:
        rows = _of_json(source)
    found = [
        {key: float(value) for key, value in row.items() if is_number(value)}
        for row in rows
        if isinstance(row, Mapping) and is_number(row.get(STEP)) and math.isfinite(row[STEP])
    ]
    return iter(_without_what_was_done_again(found))


def _without_what_was_done_again(records: list[dict[str, float]]) -> list[dict[str, float]]:
    """Leave out steps that a later start of the run, appended to the same log, has done again or never came to."""
    kept: list[dict[str, float]] = []
    trained = -math.inf
    for record in records:
        if "loss" in record:
            if record[STEP] < trained:
                kept = [one for one in kept if one[STEP] < record[STEP]]
            trained = record[STEP]
        kept.append(record)
    return kept


def is_number(value: Any) -> bool:
    """Whether it is one: NaN and infinity too, since a run that has come to them is not as good as it was before."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value.bit_length() < _BITS
    return isinstance(value, float)


def _of_json(source: Path) -> list[Any]:
    try:
        text = jsons.text_of(source)
    except UnicodeDecodeError as error:
        raise SettingsError(
            [f"{source} is not UTF-8 ({error.reason}, byte {error.start}). Save it as UTF-8."]
        ) from error
    except OSError as error:
        raise SettingsError([f"{source} cannot be read ({error.strerror}). Give another log of the run."]) from error
    if source.suffix == ".jsonl":
        return _lines(text, source)
    try:
        found = jsons.parsed(text)
    except json.JSONDecodeError as error:
        raise SettingsError([_NO_JSON.format(source, error)]) from error
    if not isinstance(found, dict) or not isinstance(found.get("log_history"), list):
        raise SettingsError([f"{source} is no log of a run: it has no `log_history`. Looked for: {LOOKED_FOR}."])
    return list(found["log_history"])


def _lines(text: str, source: Path) -> list[Any]:
    rows, problem = list[Any](), None
    for line in filter(str.strip, text.split("\n")):
        # Half a line stands at the end of a log that is being written, and where a run was broken off.
        try:
            rows.append(jsons.parsed(line))
        except json.JSONDecodeError as error:
            problem = problem or error
    found = [_renamed(row) for row in rows if isinstance(row, dict)]
    if problem is not None and not any(STEP in row for row in found):
        raise SettingsError([_NO_JSON.format(source, problem)]) from problem
    return found


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    """Return a line of LLaMA-Factory's, ms-swift's or verl's own log with the names that transformers uses."""
    if _is_verls(row):
        row = {STEP: row[STEP], **row["data"]}
    names = {"current_steps": STEP, "lr": "learning_rate", "global_step/max_steps": STEP}
    found = {names.get(key, _plain(key)): value for key, value in row.items()}
    if isinstance(found.get(STEP), str):
        done = found[STEP].partition("/")[0].strip()
        found[STEP] = int(done) if done.isdecimal() else None
    return found


def _is_verls(row: Any) -> bool:
    return isinstance(row, dict) and STEP in row and isinstance(row.get("data"), dict)


def begins_as_verls(path: Path) -> bool:
    """Whether the first line of a file is one of verl's log."""
    try:
        with path.open(encoding="utf-8") as file:
            return _is_verls(jsons.parsed(file.readline()))
    except (OSError, ValueError):
        return False


def _plain(tag: str) -> str:
    """Return a key as transformers calls it: trackers and verl put a folder before it."""
    for folder in ("eval/", "val/"):
        if tag.startswith(folder):
            return f"eval_{tag.removeprefix(folder)}"
    return tag.removeprefix("train/")


def _of_tensorboard(folder: Path) -> list[dict[str, Any]]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise SettingsError(
            [f"{folder} holds TensorBoard's files, and tensorboard is not installed: pip install tensorboard."]
        ) from error
    events: Callable[..., Any] = EventAccumulator
    found = events(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    rows: dict[int, dict[str, Any]] = {}
    for tag in found.Tags()["scalars"]:
        key = _plain(tag)
        for event in found.Scalars(tag):
            rows.setdefault(event.step, {STEP: event.step})[key] = event.value
    return [rows[step] for step in sorted(rows)]
