"""Numbers about numbers: intervals of means over seeds, and pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t, two-sided, 95 %, for 1, 2, 3 ... degrees of freedom."""


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of a mean, by Student's t; infinite for fewer than two values."""
    if len(values) < 2:
        return math.inf
    return _T_95[len(values) - 2] * stdev(values) / math.sqrt(len(values))


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return the mean difference of pairs, first minus second, and half of its 95 % interval."""
    differences = [one - other for one, other in zip(first, second, strict=True)]
    return mean(differences), half_width(differences)


def pass_at(k: int, samples: int, right: int) -> float:
    """Return the chance that k of the samples hold a right one, without bias (arXiv 2107.03374, eq. 1)."""
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)
