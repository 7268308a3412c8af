"""Words that are nearly right. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(given: object, allowed: Iterable[object], cutoff: float = 0.6) -> str | None:
    """Return the word that `given` was probably meant to be, whatever its case; None where none is near.

    Args:
        given: what somebody wrote.
        allowed: what is known; what is no text is none of them.
        cutoff: how alike they have to be, from 0 to 1.
    """
    known = {word.lower(): word for word in allowed if isinstance(word, str)}
    found = difflib.get_close_matches(given.lower(), known, n=1, cutoff=cutoff) if isinstance(given, str) else []
    return known[found[0]] if found else None


def did_you_mean(given: object, allowed: Iterable[object], cutoff: float = 0.6) -> str:
    """Return ` Did you mean `dft`?`, to follow a sentence, or nothing; else as `closest`."""
    word = closest(given, allowed, cutoff)
    return "" if word is None else f" Did you mean `{word}`?"
