"""The record of what was trained, `dft_loss.json`: written, read, two of them compared. No torch."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dft_plugin.config import jsons
from dft_plugin.config.plain import not_text

FILE = "dft_loss.json"
"""Stands beside each checkpoint, adapter and model."""

STATE_FILE, STATE_KEY = "trainer_state.json", "DftLoss"
"""Where transformers keeps the state of a run, and by what name the record stands in its `stateful_callbacks`."""

FORMAT = 1
"""Goes up where an older dft-plugin would read a record wrongly."""

HOW = ("kernel", "scratch_mb", "log")
"""Keys of `loss:` that do not say what is trained."""

_AS_TOKENS = ("always_learn", "weights")
"""Keys whose words mean ids; those are compared."""

Record = dict[str, Any]


class UnreadableRecordError(Exception):
    """There is a record, and it cannot be used; says why."""


@dataclass(frozen=True)
class Difference:
    """An option that is another one now.

    Attributes:
        key: as it stands after `loss:`.
        then: its value in the record.
        now: its value in this run.
    """

    key: str
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"`{self.key}` was {_shown(self.then)} and is {_shown(self.now)}"


def write(folder: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write a record into a folder, which is made where it is missing; a reader sees the old one or the new one."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_whole(Path(folder) / FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def write_beside_weights(folder: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write the record of weights that were saved into a folder a moment ago: it, or none.

    Raises:
        OSError: it cannot be written. The one of before, which is of other weights, is removed if it can be.
    """
    try:
        write(folder, record)
    except (OSError, UnicodeError):
        with suppress(OSError):
            (Path(folder) / FILE).unlink()
        raise


def write_whole(path: Path, text: str) -> None:
    """Put a text in the place of a file at once, with the rights that the file had, or any new one has."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        Path(name).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    # It can only be read by setting it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def read(folder: str | os.PathLike[str]) -> Record | None:
    """Return the record of a checkpoint: its file, or what its `trainer_state.json` says; None where there is none.

    Raises:
        UnreadableRecordError: there is one, damaged or of a newer dft-plugin, and no other beside it.
    """
    problem = None
    for name, find in ((FILE, _itself), (STATE_FILE, _in_state)):
        path = Path(folder) / name
        if not path.is_file():
            continue
        try:
            found = find(jsons.read(path))
            if found is not None:
                return _of_these_weights(_checked(found), path)
        except UnreadableRecordError as error:
            problem = problem or f"{path}: {error}"
        except (OSError, ValueError) as error:
            # The state is transformers' own to complain about.
            problem = problem or (f"{path} is damaged ({error})" if name == FILE else None)
    if problem is not None:
        raise UnreadableRecordError(problem)
    return None


def _of_these_weights(record: Record, path: Path) -> Record:
    """Return the record in a folder, unless a state there, which every save writes anew, says something else."""
    state = _state_of_these_weights(path) if path.name == FILE else None
    if state is None:
        return record
    said = _in_state(state)
    if said is None:
        raise UnreadableRecordError(
            f"it says {record.get('in_words')}, and {STATE_FILE} of the same weights, which is written with each "
            "checkpoint, has no record: a run without dft-plugin has saved over them"
        )
    if said.get("loss") != record["loss"]:
        raise UnreadableRecordError(
            f"it says {record['loss']}, and {STATE_FILE} beside it says {said.get('loss')}: one of them was changed "
            "or copied"
        )
    return record


def _state_of_these_weights(path: Path) -> Mapping[str, Any] | None:
    """Return the state that was saved with a checkpoint; of an output folder, one that is newer than its record."""
    state = path.parent / STATE_FILE
    is_checkpoint = re.fullmatch(r"checkpoint-\d+", path.absolute().parent.name) is not None
    try:
        # A run writes its record into its output folder before it saves, beside what an earlier one may have left.
        if not is_checkpoint and _changed(state) <= _changed(path):
            return None
        found = jsons.read(state)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, Mapping) and isinstance(found.get("global_step"), int) else None


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def _itself(found: Any) -> Any:
    return found


def _in_state(state: Any) -> Any:
    callbacks = state.get("stateful_callbacks") if isinstance(state, Mapping) else None
    kept = callbacks.get(STATE_KEY) if isinstance(callbacks, Mapping) else None
    found = kept.get("attributes") if isinstance(kept, Mapping) else None
    # A run without us that went on from a checkpoint of ours hands it on as it was.
    return found if isinstance(found, Mapping) and found.get("step") == state.get("global_step") else None


def _checked(found: Any) -> Record:
    if not isinstance(found, dict) or not isinstance(found.get("format"), int):
        raise UnreadableRecordError("this is no record of dft-plugin: it has no `format`")
    if found["format"] > FORMAT:
        raise UnreadableRecordError(
            f"this record was written by {found.get('written_by', 'a newer dft-plugin')}, in a form that this version "
            f"does not know (format {found['format']}; up to {FORMAT} is read). Upgrade dft-plugin"
        )
    if not isinstance(found.get("loss"), dict) or not isinstance(found["loss"].get("name"), str):
        raise UnreadableRecordError("the record is damaged: it does not say which loss was trained")
    odd = [
        key
        for key, value, kind in (
            ("tokens", found.get("tokens"), dict),
            ("loss.weights", found["loss"].get("weights"), dict),
            ("before", found.get("before"), list),
            ("computed", found.get("computed"), list),
        )
        if value and not isinstance(value, kind)
    ]
    odd += [key for key, holds in _PARTS.items() if key not in odd and not all(map(holds, found.get(key) or ()))]
    if odd:
        raise UnreadableRecordError(f"the record is damaged: `{odd[0]}` is not what dft-plugin writes there")
    if half := not_text(found, "record", levels=8):
        raise UnreadableRecordError(f"the record is damaged: {half[0].split('. Write')[0]}")
    return found


def _is_earlier(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("until_step"), int) and _is_loss(part.get("loss"))


def _is_loss(loss: Any) -> bool:
    return loss is None or isinstance(loss, dict)


def _is_pass(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("from_step"), int)


_PARTS = {"before": _is_earlier, "computed": _is_pass}
"""What each part of a history has to be."""


def as_state(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record as it stands in `trainer_state.json`, in the form of a callback's state."""
    return {"args": {}, "attributes": dict(record)}


def differences(then: Record, now: Record, defaults: Mapping[str, Any]) -> list[Difference]:
    """List what trains otherwise now than it did: not how it is computed, nor what is logged.

    Args:
        then: the record of a checkpoint.
        now: that of this run.
        defaults: of the options of this run's objective; one that an older version did not have was at its default.
    """
    before, after = _trained(then), _trained(now)
    if before["name"] != after["name"]:
        # The options of another loss say nothing.
        return [Difference("name", before["name"], after["name"])]
    found = []
    for key in dict.fromkeys((*before, *after)):
        old, new = (side.get(key, defaults.get(key)) for side in (before, after))
        if old != new:
            found.append(Difference(key, old, new))
    return found


def _trained(record: Record) -> dict[str, Any]:
    loss = record["loss"]
    tokens = record.get("tokens") or {}
    said = {key: value for key, value in loss.items() if key not in (*HOW, *_AS_TOKENS)}
    weights = loss.get("weights") or {}
    return {
        **said,
        "always_learn": tokens.get("always_learned"),
        "weights.column": weights.get("column"),
        "weights.tokens": tokens.get("factors") or None,
    }


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False) if _nested(value) else str(value)


def _nested(value: Any) -> bool:
    return isinstance(value, (dict, list))


def ranges(ids: tuple[int, ...] | list[int]) -> str | None:
    """Return sorted ids in short, `2, 128000-128255`; None where there are none."""
    parts: list[list[int]] = []
    for number in sorted(set(ids)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts) or None
