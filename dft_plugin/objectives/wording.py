"""What of a loss is more than its objective, in words: of settings as they were written, and of what they became."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_SHOWN = 5
"""How many of a kind are shown."""


_NONFINITE = {
    "error": "stops before a step whose loss is not finite",
    "skip": "leaves out steps whose loss is not finite",
}


def besides(
    *,
    scratch_mb: int | None = None,
    reference: str | None = None,
    tokens: Sequence[str] = (),
    log: Sequence[str] = (),
    resume: str = "same",
    nonfinite: str = "warn",
) -> list[str]:
    """Return the parts of a line, one for each setting that is not as it is where nothing is said.

    Args:
        scratch_mb: MiB for logits.
        reference: what the model is compared with, in words.
        tokens: what is said of tokens, as `always_learned` and `weights` say it.
        log: statistics that are logged on demand.
        resume: `allow` where a checkpoint of another loss may be gone on from.
        nonfinite: what becomes of a step whose loss is not a finite number.
    """
    return [
        *([] if scratch_mb is None else [f"scratch {scratch_mb} MiB"]),
        *([f"reference: {reference}"] if reference else []),
        *tokens,
        *([f"logs {', '.join(f'dft/{name}' for name in log)}"] if log else []),
        *([] if resume == "same" else ["goes on from a checkpoint of any loss"]),
        *([] if nonfinite == "warn" else [_NONFINITE[nonfinite]]),
    ]


def always_learned(said: str) -> list[str]:
    """Return the part that says which tokens get weight 1, where there are such."""
    return [f"always learned: {said}"] if said else []


def weights(column: str | None, factors: Iterable[tuple[str, float]]) -> list[str]:
    """Return the part that says what weights are multiplied by, where they are.

    Args:
        column: of the data.
        factors: tokens, in words, each with its factor.
    """
    each = [f"{token} x {factor:g}" for token, factor in factors]
    said = [*([] if column is None else [f"column `{column}`"]), *each]
    return [f"weights: {listed(said, ', ')}"] if said else []


def listed(texts: Sequence[str], between: str = " ") -> str:
    """Return the first few of them, and how many more there are."""
    more = len(texts) - _SHOWN
    return between.join(texts[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
