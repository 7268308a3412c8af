"""A folder with weights that somebody has trained: what is in it, and what is said of it. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dft_plugin.config import jsons
from dft_plugin.config import record as records
from dft_plugin.config.record import Record, UnreadableRecordError
from dft_plugin.errors import SettingsError

MODEL, ADAPTER = "config.json", "adapter_config.json"
"""What tells a model, and an adapter of PEFT's."""


@dataclass(frozen=True)
class Trained:
    """A checkpoint, a model or an adapter.

    Attributes:
        folder: where the weights are.
        is_adapter: whether they are those of an adapter.
        record: what they were trained with; None: nothing says it.
        problem: why nothing says it, where there is a record that cannot be used.
        step: how many steps were done; None: not known.
        last_step: how many the run was to have; None: not known.
        epoch: how many epochs were done; None: not known.
    """

    folder: Path
    is_adapter: bool
    record: Record | None = None
    problem: str | None = None
    step: int | None = None
    last_step: int | None = None
    epoch: float | None = None

    @property
    def loss(self) -> dict[str, Any] | None:
        """What was trained, as it may stand after `loss:`, but for how it was computed and logged."""
        if self.record is None:
            return None
        return {key: value for key, value in self.record["loss"].items() if key not in records.HOW}


def find(path: Path) -> Trained:
    """Read what a folder says of its weights; they are left alone.

    Raises:
        SettingsError: it is not there, or holds neither a model nor an adapter.
    """
    return _read(path, *_weights(path))


def adapter_in(path: Path) -> Trained | None:
    """Return an adapter that lies in a folder; None: there is none, or it is no folder."""
    folder = _adapter(path)
    return None if folder is None else _read(path, folder, True)


def _read(path: Path, folder: Path, is_adapter: bool) -> Trained:
    try:
        record, problem = records.read(folder), None
    except UnreadableRecordError as error:
        record, problem = None, str(error)
    state = _state(folder) or _state(path) or {}
    if not state and record is not None:
        state = {"global_step": record.get("step"), "max_steps": record.get("max_steps")}
    epoch = state.get("epoch")
    return Trained(
        folder,
        is_adapter,
        record,
        problem,
        step=_count(state.get("global_step")),
        last_step=_count(state.get("max_steps")),
        epoch=float(epoch) if isinstance(epoch, (int, float)) else None,
    )


def _weights(path: Path) -> tuple[Path, bool]:
    """Return the folder with the weights, and whether it is an adapter's."""
    adapter = _adapter(path)
    if adapter is not None:
        return adapter, True
    if (path / MODEL).is_file():
        return path, False
    inside = sorted(one for one in path.glob("checkpoint-*") if one.is_dir()) if path.is_dir() else []
    what = (
        "holds neither a model (config.json) nor an adapter (adapter_config.json)" if path.is_dir() else "is not there"
    )
    others = f", here {', '.join(map(str, inside))}" if inside else ""
    raise SettingsError(
        [f"--checkpoint {path} {what}. Give the folder of a checkpoint, a model or an adapter{others}."]
    )


def _adapter(path: Path) -> Path | None:
    if (path / ADAPTER).is_file() or (path / MODEL).is_file():
        return path if (path / ADAPTER).is_file() else None
    # PEFT saves adapters with names of their own a folder further down.
    named = [one.parent for one in sorted(path.glob(f"*/{ADAPTER}")) if not one.parent.name.startswith("checkpoint-")]
    return named[0] if len(named) == 1 else None


def _state(folder: Path) -> dict[str, Any] | None:
    try:
        found = jsons.read(folder / records.STATE_FILE)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _count(number: Any) -> int | None:
    return number if isinstance(number, int) and number > 0 else None
