"""JSON that somebody else may have written: whatever is wrong with it is a ValueError or an OSError. No torch."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

LIMIT = 1 << 30
"""Bytes of a file that is read whole: 100,000 logged steps have a tenth of that."""


def parsed(text: str) -> Any:
    """Return the value of a text.

    Raises:
        json.JSONDecodeError: it is no JSON, or none that Python reads: nested too deep, a number of too many digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("nested too deep", text, 0) from None
    except ValueError as error:
        raise json.JSONDecodeError(str(error).split(";")[0], text, 0) from None


def text_of(path: str | os.PathLike[str]) -> str:
    """Return the text of a file, without the mark that editors put before it.

    Raises:
        OSError: it cannot be read, is no file but a pipe or a device, or is larger than `LIMIT`.
        UnicodeDecodeError: it is not UTF-8.
    """
    there = Path(path)
    size = there.stat().st_size
    if not there.is_file():
        raise OSError(errno.EINVAL, "it is no file", str(path))
    if size > LIMIT:
        raise OSError(errno.EFBIG, f"it has {size / (1 << 30):.1f} GiB, and at most {LIMIT >> 30} is read", str(path))
    return there.read_text(encoding="utf-8-sig")


def read(path: str | os.PathLike[str]) -> Any:
    """Return the value of a file.

    Raises:
        OSError: as `text_of`.
        ValueError: it is not UTF-8, or as `parsed`.
    """
    return parsed(text_of(path))
