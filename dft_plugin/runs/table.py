"""Several runs side by side: what each ended with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dft_plugin.runs.logs import Run

ACROSS = ("nll", "mean_prob", "top1", "eos_prob", "low_weight_share")
"""What can be compared between losses: the same quantity, whatever was trained."""

BETTER = {"nll": "lower", "mean_prob": "higher", "top1": "higher", "eos_prob": "higher"}

TITLES = {
    "loss": "what is trained (not to be compared between losses)",
    "nll": "cross-entropy (nll), nats per token",
    "mean_prob": "mean probability of the targets",
    "top1": "token accuracy (top 1)",
    "effective_share": "effective tokens, share of all",
    "eos_prob": "mean probability of ends of answers",
    "low_weight_share": "share of tokens with a weight below 0.01",
}

NLL_ALONE = (
    "nll is what SFT minimises, so nll alone favours SFT. Look at mean probability and accuracy on held-out data "
    "too, and at what the model writes: greedy, and at the temperature that you will use."
)
"""Said wherever runs are compared."""


@dataclass(frozen=True)
class Line:
    """One quantity of all runs.

    Attributes:
        key: as it was logged, `dft/` and `eval_` included.
        title: in words.
        values: the last of each run; None where it was not logged.
        best: which runs have the best one.
    """

    key: str
    title: str
    values: tuple[float | None, ...]
    best: frozenset[int]


def compare(runs: Sequence[Run]) -> list[Line]:
    """Return a line for each quantity that a run logged, evaluation first: of each set, where there are several."""
    keys = [f"{prefix}dft/{name}" for prefix in (*evaluations(runs), "") for name in ACROSS]
    lines = [_line(runs, key) for key in keys]
    return [line for line in lines if any(value is not None for value in line.values)]


def evaluations(runs: Sequence[Run]) -> list[str]:
    """Return what stands before the keys of each evaluation set that a run logged: `eval_`, `eval_math_`."""
    every = (key for run in runs for key in run.keys)
    named = {found[1] for key in every if (found := re.match(r"(eval_(?:.+_)?)dft/", key))}
    return sorted({"eval_", *named})


def of_set(prefix: str) -> str:
    """Say in words what keys with this before them are of."""
    name = prefix.removeprefix("eval_").removesuffix("_")
    return "training" if not prefix else f"evaluation on {name}" if name else "evaluation"


def _line(runs: Sequence[Run], key: str) -> Line:
    name = key.rpartition("/")[2]
    values = tuple(last(run, key) for run in runs)
    there = [value for value in values if value is not None and math.isfinite(value)]
    best = None
    # Of runs that ended alike, none is the best.
    if name in BETTER and there and sum(value is not None for value in values) > 1 and len(set(values)) > 1:
        best = min(there) if BETTER[name] == "lower" else max(there)
    where = of_set(key.rpartition("dft/")[0])
    winners = frozenset(number for number, value in enumerate(values) if best is not None and value == best)
    return Line(key, f"{TITLES[name]}, {where}", values, winners)


def last(run: Run, key: str) -> float | None:
    """Return the last value that a run logged under a key."""
    found = run.series(key)
    return found[-1][1] if found else None


def without_statistics(runs: Sequence[Run]) -> list[str]:
    """Name the runs that logged nothing of ours, so that there is little to compare."""
    return [run.name for run in runs if not any("dft/" in key for key in run.keys)]
