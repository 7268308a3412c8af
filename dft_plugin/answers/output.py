"""The file that is written, and beside it how far it is: a run that is killed goes on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dft_plugin.answers.judging import Counts
from dft_plugin.config import jsons
from dft_plugin.errors import SettingsError

STATE = ".progress.json"


class Output:
    """A file of JSON lines.

    Args:
        path: the file.
        settings: what the rows are made by; a file that was made by others is not gone on with.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.state = path.with_name(path.name + STATE)
        self.done, self.counts, self.finished = 0, Counts(), False

    def problems(self, resume: bool) -> list[str]:
        """Say why it cannot be written; else read how far it is. Changes nothing.

        Args:
            resume: whether a file that is there may be gone on with.
        """
        if not self.path.parent.is_dir() or not os.access(self.path.parent, os.W_OK):
            return [f"--out {self.path} cannot be written: {self.path.parent} is no folder of yours."]
        there = [one for one in (self.path, self.state) if one.exists()]
        if not there:
            return []
        if not resume:
            return [f"--out {self.path} is there already. Go on with it by --resume, or name another file."]
        try:
            found = jsons.read(self.state)
            before, self.done, self.finished = found["settings"], int(found["done"]), bool(found["finished"])
            self.counts, size = Counts.from_json(found["counts"]), int(found["bytes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            said = f"{self.state.name} beside it, which says how far it is, cannot be read ({type(error).__name__})"
            return [f"--out {self.path} cannot be gone on with: {said}. Name another file."]
        if not self.path.exists() or self.path.stat().st_size < size:
            return [f"--out {self.path} is shorter than it was when the run was stopped. Name another file."]
        return [] if before == self.settings else [self._differences(before)]

    def _differences(self, before: Mapping[str, Any]) -> str:
        names = dict.fromkeys([*self.settings, *before])
        said = [
            f"{name} was {before.get(name)!r} and is {self.settings.get(name)!r}"
            for name in names
            if before.get(name) != self.settings.get(name)
        ]
        return f"--out {self.path} was made otherwise: {'; '.join(said)}. Ask as before, or name another file."

    def open(self) -> None:
        """Begin, or go on: rows behind the last that are known to be whole are removed.

        Raises:
            SettingsError: it cannot be written.
        """
        try:
            if self.state.exists():
                size = int(jsons.read(self.state)["bytes"])
                os.truncate(self.path, size)
            else:
                self.path.open("x").close()
                self._remember()
        except OSError as error:
            raise SettingsError(
                [f"--out {self.path} cannot be written ({error.strerror}). Name another file."]
            ) from error

    def add(self, rows: Iterable[Mapping[str, Any]], done: int) -> None:
        """Write rows, and then that they are there.

        Args:
            rows: of the questions up to `done`.
            done: how many rows of the data are dealt with.
        """
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                self.counts.rows += 1
            file.flush()
            os.fsync(file.fileno())
        self.done = done
        self._remember()

    def finish(self) -> None:
        """Say that nothing is left."""
        self.finished = True
        self._remember()

    def _remember(self) -> None:
        partial = self.state.with_name(self.state.name + ".partial")
        said = {
            "settings": self.settings,
            "done": self.done,
            "finished": self.finished,
            "bytes": self.path.stat().st_size,
            "counts": self.counts.as_json(),
        }
        partial.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.state)
