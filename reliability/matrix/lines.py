"""The file of lines: one for each cell, the newest counts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reliability.matrix import names

Line = dict[str, Any]


@dataclass(frozen=True)
class Lines:
    """Lines in a file; `mutation` is empty in those of the matrix itself."""

    file: Path

    def all(self, mutation: str = "") -> dict[tuple[str, str], Line]:
        """Return the lines by row and column."""
        if not self.file.exists():
            return {}
        every = [json.loads(text) for text in self.file.read_text().splitlines()]
        return {(one["row"], one["column"]): one for one in every if one.get("mutation", "") == mutation}

    def put(self, line: Line, mutation: str = "") -> None:
        """Write a line, in the place of an older one of the same cell; the file is in the order of the page."""
        every = [json.loads(text) for text in self.file.read_text().splitlines()] if self.file.exists() else []
        line = {**line, "mutation": mutation} if mutation else line
        every = [one for one in every if _key(one) != _key(line)] + [line]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("".join(json.dumps(one) + "\n" for one in sorted(every, key=_place)))


def _key(line: Line) -> tuple[str, str, str]:
    return line.get("mutation", ""), line["row"], line["column"]


def _place(line: Line) -> tuple[str, int, int]:
    rows = [row.name for row in names.ROWS]
    return line.get("mutation", ""), rows.index(line["row"]), names.COLUMNS.index(line["column"])
