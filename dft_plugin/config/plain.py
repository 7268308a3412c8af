"""Values that every process and every file can hold: Python's own numbers, and text of whole characters. No torch."""

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


def not_text(value: Any, where: str, levels: int = _DEEPEST) -> list[str]:
    """List texts that hold half of a character (a lone surrogate), which no file, tokenizer or terminal takes.

    Args:
        value: a text, or what `plain` has returned.
        where: its key, for the messages.
        levels: of mappings and lists that are looked at.
    """
    if isinstance(value, str):
        if value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value):
            return []
        said = ascii(value) if len(value) <= 60 else f"{value[:60]!a}..."
        return [
            f"`{where}`: {said} holds half of a character (U+D800 to U+DFFF), which is no text. Write the character "
            "itself, and save the file as UTF-8."
        ]
    if not levels:
        return []
    if isinstance(value, Mapping):
        keys = [problem for key in value for problem in not_text(key, where)]
        named = {key: f"{where}.{ascii(key)[1:-1] if isinstance(key, str) else key}" for key in value}
        return keys + [problem for key in value for problem in not_text(value[key], named[key], levels - 1)]
    if type(value) in (list, tuple):
        return [problem for entry in value for problem in not_text(entry, where, levels - 1)]
    return []


def _key(given: Any) -> Any:
    """Return a key; an integer that is not Python's as one that is."""
    if isinstance(given, int):
        return given
    return int(given) if isinstance(given, Integral) else given
