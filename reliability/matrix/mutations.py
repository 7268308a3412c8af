"""One thing broken at a time, in every rank: what the matrix must notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from dft_plugin.core import targets
from dft_plugin.core.stats import LossStats
from dft_plugin.hf import counting, trainer


def _reduction() -> None:
    """The statistics of a pass stay those of one rank."""
    LossStats.reduce = lambda self, all_sum: self  # type: ignore[method-assign]


def _divisor() -> None:
    """A rank divides by its own targets, as if they were those of all."""
    counted = counting._targets

    def own(of: Any, micro_batches: Any) -> Any:
        counts = [counted(batch) for batch in micro_batches]
        return torch.stack([count for count in counts if count is not None]).sum()

    trainer.count_targets = own


def _mask() -> None:
    """The last target of each batch is lost."""
    select = targets.select

    def without_the_last(*args: Any, **kwargs: Any) -> Any:
        found = select(*args, **kwargs)
        return replace(found, positions_T=found.positions_T[:-1], ids_T=found.ids_T[:-1])

    targets.select = without_the_last


def _guard() -> None:
    """Nobody looks whether a step's loss was ours."""
    trainer.TrainerHook._require = lambda self, calls, happened: None  # type: ignore[method-assign]


MUTATIONS: dict[str, Callable[[], None]] = {
    "reduction": _reduction,
    "divisor": _divisor,
    "mask": _mask,
    "guard": _guard,
}
