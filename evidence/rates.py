"""Which learning rate a loss gets in a group of cells: README.md has the rule, and had it before any run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RATES = (3e-4, 1e-3, 3e-3)
FURTHER = {3e-4: 1e-4, 3e-3: 1e-2}
"""What is tried besides, where the best is at an end."""

SEED = 0
"""Of the runs that choose; no table reports it."""

NEAR = 0.005
"""Of rates that are this near to the best, the smallest is taken."""


HOPELESS = 0.05
"""Where no rate reaches this, the probability of right answers decides."""


@dataclass(frozen=True)
class Tried:
    """What a rate led to.

    Attributes:
        accuracy: the mean of greedy accuracy and accuracy at temperature 1.
        probability: the mean of the tokens of right answers.
    """

    accuracy: float
    probability: float


def tried(row: Mapping[str, Any]) -> Tried:
    """Return what a row says of its rate."""
    right = row["accuracy"]
    return Tried((right["taught@0"] + right["taught@1"]) / 2, row["right"]["mean_prob"])


def missing(
    found: Mapping[float, Tried], rates: tuple[float, ...] = RATES, beyond: Mapping[float, float] = FURTHER
) -> list[float]:
    """Return the rates that must be tried before one can be chosen.

    Args:
        found: of the rates that were tried.
        rates: to begin with.
        beyond: what is tried besides, where the best is at an end.
    """
    first = [rate for rate in rates if rate not in found]
    if first:
        return first
    further = beyond.get(_best({rate: found[rate] for rate in rates}))
    return [further] if further is not None and further not in found else []


def chosen(
    found: Mapping[float, Tried], rates: tuple[float, ...] = RATES, beyond: Mapping[float, float] = FURTHER
) -> float | None:
    """Return the rate; None while some that matter were not tried."""
    return None if missing(found, rates, beyond) else _best(found)


def _best(found: Mapping[float, Tried]) -> float:
    best = max(one.accuracy for one in found.values())
    if best < HOPELESS:
        return max(found, key=lambda rate: found[rate].probability)
    return min(rate for rate, one in found.items() if one.accuracy >= best - NEAR - 1e-9)
