"""What messages are made of: values as they were given, and warnings above the bars of a run. No torch."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MOST_SHOWN = 200
"""Letters of a value in a message."""


def shown(value: object, most: int = MOST_SHOWN) -> str:
    """Return a value as it was given, and of a long one the beginning; of one that cannot be written down its type.

    Args:
        value: anything, its own mistakes included.
        most: letters.
    """
    try:
        said = repr(value)
    except Exception:
        # An integer of more than 4300 digits, what is nested without end, an object whose repr fails.
        return f"<{type(value).__name__}>"
    return said if len(said) <= most else f"{said[:most]}..."


@contextmanager
def above_bars() -> Iterator[None]:
    """Take tqdm's bars off the terminal in this block, and draw them again below what was written.

    In a file nothing can be taken back, so a bar ends its line there.
    """
    # Nobody has drawn a bar by a module that is not loaded.
    bars = sys.modules.get("tqdm.std")
    if bars is None:
        yield
    elif sys.stderr.isatty():
        with bars.tqdm.external_write_mode(file=sys.stderr):
            yield
    else:
        if any(map(_ends_no_line, list(getattr(bars.tqdm, "_instances", ())))):
            sys.stderr.write("\n")
        yield


def _ends_no_line(bar: Any) -> bool:
    """Whether a bar stands in what is written to stderr; one in a notebook does not."""
    return not bar.disable and not hasattr(bar, "container") and bool(bar.fp == sys.stderr)


def warn(logger: logging.Logger, text: str, *args: object) -> None:
    """Log a warning above the bars.

    Args:
        logger: of the module that warns.
        text: with placeholders, as for `logger.warning`.
        args: what stands in them.
    """
    with above_bars():
        logger.warning(text, *args, stacklevel=2)


@contextmanager
def spared(logger: logging.Logger, path: object) -> Iterator[None]:
    """Spare a run what becomes of a file of ours: warn where the disk is full, nobody may write, or it is no text."""
    try:
        yield
    except (OSError, UnicodeError) as error:
        warn(logger, "dft: %s cannot be written (%s). The run goes on without it.", path, error)
