"""A file of rows that stands on the command line: what is wrong with it, before a model is loaded for it. No torch."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from typing import Any

from dft_plugin.config import jsons

FORMS = (("messages",), ("conversations",), ("prompt", "completion"), ("text",), ("input_ids",))
"""Columns that TRL makes target tokens of: one of these groups."""

_LOOKED_AT = 100
"""Lines; a host reads the rest."""


def problem(path: Path) -> str | None:
    """Say what of a file of rows is no row, or that no column of it is one that TRL reads; None: nothing is.

    Args:
        path: of JSON lines, a JSON array, CSV or Parquet.
    """
    if not path.stat().st_size:
        return f"{path} is empty. Give a file with rows."
    try:
        columns = _columns(path)
    except UnicodeDecodeError as error:
        return f"{path} is not UTF-8 ({error.reason}, byte {error.start}). Save it as UTF-8."
    except _BadRowError as error:
        return f"{path}, {error}"
    if columns is None or any(set(form) <= set(columns) for form in FORMS):
        return None
    needed = ", ".join(" with ".join(f"`{name}`" for name in form) for form in FORMS)
    found = ", ".join(f"`{name}`" for name in columns)
    return f"{path} has the columns {found}. TRL reads one of: {needed}. Rename them."


class _BadRowError(ValueError):
    """A line is none."""


def _columns(path: Path) -> Collection[str] | None:
    """Return the columns of the first row; None: not known from the first lines."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    if path.suffix == ".parquet":
        return _of_parquet(path)
    with path.open(encoding="utf-8-sig") as file:
        lines = list(islice(((number, line) for number, line in enumerate(file, 1) if line.strip()), _LOOKED_AT))
    if path.suffix == ".json" and lines and lines[0][1].lstrip().startswith(("[", "{\n")):
        return None
    rows = [_row(number, line) for number, line in lines]
    return rows[0] if rows else None


def _row(number: int, line: str) -> dict[str, Any]:
    try:
        row = jsons.parsed(line)
    except json.JSONDecodeError as error:
        said = f"line {number} is not JSON ({error.msg}, column {error.colno}). Write one object a line."
        raise _BadRowError(said) from error
    if not isinstance(row, dict):
        raise _BadRowError(f"line {number} is no object but {line.strip()[:40]}. Write one object a line.")
    return row


def _of_parquet(path: Path) -> Collection[str] | None:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        return None
    try:
        return list(parquet.read_schema(path).names)
    except ArrowInvalid as error:
        raise _BadRowError(f"which is no Parquet file ({str(error).splitlines()[0]}). Give one.") from error
