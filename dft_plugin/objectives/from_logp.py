"""Which objectives need no more of a row of logits than the log-probability of its target. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from dft_plugin.objectives.base import Weigher
from dft_plugin.objectives.rows import Named, RowStatistic

COMPUTED: tuple[Named, ...] = ("entropy", "sum_p_squared")
"""Statistics of a row that somebody who has its logits may have computed beside log p."""


def unknown(objective: Weigher, given: Collection[str], wanted: Iterable[RowStatistic] = ()) -> list[str]:
    """List what an objective reads of whole rows of logits, where there is nothing but log p.

    Args:
        objective: gives the weights.
        given: which of `COMPUTED` is known beside log p.
        wanted: what is read besides, for the log.

    Returns:
        Words that follow the objective's name, ready for a message; empty where log p suffices.
    """
    names = [one if isinstance(one, str) else one.name for one in {*objective.needs, *wanted}]
    found = [f"reads `{name}` of each row of logits" for name in sorted(names) if name not in given]
    if objective.reference == "distribution":
        found.append("compares whole rows of logits with those of a reference")
    return found
