"""What is logged: how each statistic is made from sums, and which way is better. No torch: a check reads it too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Literal

from dft_plugin.objectives.adjusted import DATA_WEIGHT, EXEMPT_PROB, EXEMPT_SHARE

LOW_WEIGHT = 0.01
"""Below this weight a token teaches next to nothing; the log shows the share of such tokens."""

Direction = Literal["lower", "higher"]


class Sum(IntEnum):
    """Which raw sum stands at which index of `LossStats.sums_K`."""

    TOKENS = 0
    LOSS = auto()
    NLL = auto()
    PROB = auto()
    WEIGHT = auto()
    WEIGHT_SQUARED = auto()
    LOW_WEIGHT_TOKENS = auto()
    EOS_TOKENS = auto()
    EOS_PROB = auto()
    DIVISOR = auto()


Sums = Mapping[Sum, float]


@dataclass(frozen=True)
class Statistic:
    """One key of the log.

    Attributes:
        key: as it is logged, without the prefix of an evaluation.
        better: which way is better; None: neither is, so that it cannot choose a checkpoint.
        divide: makes it from sums of at least one token; None where it has no value.
    """

    key: str
    better: Direction | None
    divide: Callable[[Sums], float | None]


def _per_token(of: Sum) -> Callable[[Sums], float]:
    return lambda sums: sums[of] / sums[Sum.TOKENS]


def _loss(sums: Sums) -> float:
    return sums[Sum.LOSS] / (sums[Sum.DIVISOR] or 1.0)


def _perplexity(sums: Sums) -> float:
    nll = sums[Sum.NLL] / sums[Sum.TOKENS]
    return math.inf if nll > 700 else math.exp(nll)


def _effective_tokens(sums: Sums) -> float:
    squares = sums[Sum.WEIGHT_SQUARED]
    return sums[Sum.WEIGHT] ** 2 / squares if squares else 0.0


def _eos_prob(sums: Sums) -> float | None:
    return sums[Sum.EOS_PROB] / sums[Sum.EOS_TOKENS] if sums[Sum.EOS_TOKENS] else None


STATISTICS = (
    Statistic("dft/loss", "lower", _loss),
    Statistic("dft/nll", "lower", _per_token(Sum.NLL)),
    Statistic("dft/perplexity", "lower", _perplexity),
    Statistic("dft/mean_prob", "higher", _per_token(Sum.PROB)),
    Statistic("dft/mean_weight", None, _per_token(Sum.WEIGHT)),
    Statistic("dft/effective_tokens", None, _effective_tokens),
    Statistic("dft/tokens", None, lambda sums: sums[Sum.TOKENS]),
    Statistic("dft/low_weight_share", None, _per_token(Sum.LOW_WEIGHT_TOKENS)),
    Statistic("dft/eos_prob", "higher", _eos_prob),
)
"""All that is logged, in the order of the log."""

OF_RULES: Mapping[str, Direction | None] = {
    f"dft/{EXEMPT_SHARE}": None,
    f"dft/{EXEMPT_PROB}": "higher",
    f"dft/{DATA_WEIGHT}": None,
}
"""What is logged besides where the loss treats some tokens apart (`objectives.adjusted`)."""

ON_DEMAND: Mapping[str, Direction | None] = {"dft/top1": "higher", "dft/entropy": None}
"""What is logged where `log:` asks for it."""

DIRECTIONS: Mapping[str, Direction | None] = {
    **{statistic.key: statistic.better for statistic in STATISTICS},
    **OF_RULES,
    **ON_DEMAND,
}
"""Which way is better, by key."""
