"""Rows of finished runs, a line each, one file for each part; they outlive whatever kills the process that writes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence.claims import held

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The rows in a folder.

    Attributes:
        folder: of `<part>.jsonl`.
    """

    folder: Path

    def all(self) -> dict[str, Row]:
        """Return the rows by key; a line that was cut off is none."""
        return {row["key"]: row for path in sorted(self.folder.glob("*.jsonl")) for row in _read(path)}

    def append(self, row: Row, lock: Path) -> None:
        """Add a row, whole or not at all.

        Args:
            row: has a `part` and a `key`.
            lock: a file that processes which write share.
        """
        path = self.folder / f"{row['part']}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with held(lock), path.open("ab+") as file:
            if file.tell() and _last_byte(path) != b"\n":
                file.write(b"\n")
            file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def _read(path: Path) -> Iterator[Row]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
