"""Numbers of other libraries as Python's own, which every process and every file can hold. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

_DEEPEST = 4
"""Levels of mappings and lists below `loss:` that mean something."""


def plain(value: Any, levels: int = _DEEPEST) -> Any:
    """Return a value with Python's own numbers in the place of NumPy's, of tensors without dimensions, of fractions.

    What is no number stays what it is.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {_key(key): plain(entry, levels - 1) for key, entry in value.items()} if levels else value
    if type(value) in (list, tuple):
        return [plain(entry, levels - 1) for entry in value] if levels else value
    try:
        # What NumPy has masked has a number below, which nobody meant.
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item") and not hasattr(value, "mask"):
            return value.item()
        if isinstance(value, Integral):
            return int(value)
        return float(value) if isinstance(value, (Real, Decimal)) else value
    except (OverflowError, ValueError, RuntimeError):
        return value


def _key(given: Any) -> Any:
    """Return a key; an integer that is not Python's as one that is."""
    if isinstance(given, int):
        return given
    return int(given) if isinstance(given, Integral) else given
