"""What a part is given, and the sheet on which it writes what it finds, as it finds it."""

from __future__ import annotations

import json
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAST_LINES = 12
"""Of a traceback."""


@dataclass(frozen=True)
class Options:
    """What to run on.

    Attributes:
        device: `cuda`, or `cpu`, where all of it runs in order to be tested.
        small: sizes at which the numbers mean nothing.
        folder: where the sheets of all parts lie.
    """

    device: str
    small: bool
    folder: str

    def sheet(self, part: str) -> Path:
        """Return where a part writes."""
        return Path(self.folder) / f"{part}.json"


@dataclass
class Sheet:
    """Lines for a reader and numbers for a program; on disk after each call, so that a time limit loses nothing.

    Attributes:
        path: of the file.
        lines: markdown.
        numbers: whatever JSON holds.
        faults: what went wrong while the others went on.
        rows: of all tables.
        failed: those of them that tell of a failure.
    """

    path: Path
    lines: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    rows: int = 0
    failed: int = 0

    def say(self, *lines: str) -> None:
        """Add lines."""
        self.lines += lines
        self._save()

    def row(self, *cells: object) -> None:
        """Add a row of a table."""
        self.rows += 1
        self.say("| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |")

    def row_failed(self, *cells: object) -> None:
        """Add a row that tells of a failure, so that the part does not pass for well."""
        self.failed += 1
        self.row(*cells)

    def head(self, *cells: str) -> None:
        """Begin a table."""
        self.say("", "| " + " | ".join(cells) + " |", "|" + " --- |" * len(cells))

    def fault(self, where: str, error: BaseException) -> str:
        """Keep the end of an error's traceback for the end of the sheet, and return the error in one line."""
        if not isinstance(error, ImportError):
            trace = "".join(traceback.format_exception(error)).rstrip().splitlines()[-LAST_LINES:]
            self.faults += ["", f"{where}:", "", "```", *trace, "```"]
            self._save()
        return short(error)

    def keep(self, key: str, value: Any) -> None:
        """Keep a number, or a mapping of them."""
        self.numbers[key] = value
        self._save()

    def _save(self) -> None:
        partial = self.path.with_suffix(".partial")
        lines = [*self.lines, *self.faults]
        partial.write_text(
            json.dumps({"lines": lines, "numbers": self.numbers, "rows": self.rows, "failed": self.failed})
        )
        # Whoever reads meanwhile sees the old sheet or the new one, whole.
        partial.replace(self.path)


def read(path: Path) -> dict[str, Any]:
    """Return `lines`, `numbers`, `rows` and `failed` of a sheet; empty ones where nothing was written."""
    if not path.exists():
        return {"lines": [], "numbers": {}, "rows": 0, "failed": 0}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def short(error: BaseException) -> str:
    """Say in one line what went wrong."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
