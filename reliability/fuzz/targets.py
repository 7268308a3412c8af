"""The targets: where input comes from, and what it is held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from reliability.fuzz import batches, losses, plugins, scoring, tensors, texts, words


@dataclass(frozen=True)
class Target:
    """One of them.

    Attributes:
        said: what is given, for the page.
        strategy: draws cases.
        check: holds a case to the property; returns `answered` or `refused`, raises `FaultError`.
        share: of the cases of a run over all targets.
        in_tests: cases in the default tests.
    """

    said: str
    strategy: st.SearchStrategy[Any]
    check: Callable[[Any], str]
    share: float
    in_tests: int


TARGETS: dict[str, Target] = {
    "settings": Target("what stands after `loss:`, of every type", losses.LOSSES, losses.check, 0.35, 4000),
    "texts": Target("bytes of a YAML or JSON file", texts.TEXTS, texts.check, 0.35, 3000),
    "overrides": Target("words of a command line", words.LINES, words.check, 0.2, 2000),
    "tensors": Target("shapes, dtypes, strides, labels of the functions", tensors.cases(), scoring.check, 0.06, 1200),
    "batches": Target("labels, masks, positions of a model's call", batches.batches(), batches.check, 0.02, 100),
    "plugins": Target("objectives, hooks, entry points of others", plugins.PLUGINS, plugins.check, 0.02, 300),
}
"""By name."""
