"""Engines by the key that a row names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from reliability.matrix.engines import fsdp, shared, zero
from reliability.matrix.engines.base import Engine

ENGINES: dict[str, Callable[..., Engine]] = {
    "": Engine,
    "ddp": Engine,
    **fsdp.ENGINES,
    **zero.ENGINES,
    **shared.ENGINES,
}


def engine(key: str, folder: Path, experts: bool) -> Engine:
    """Return a fresh engine for one cell."""
    made: Any = ENGINES[key](folder, experts=experts)
    return made
