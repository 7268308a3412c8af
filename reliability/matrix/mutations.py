"""One thing broken at a time, in every rank: what the matrix must notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dft_plugin.core import targets
from dft_plugin.core.stats import LossStats
from dft_plugin.hf import counting, trainer


def _reduction() -> None:
    """The statistics of a pass stay those of one rank."""
    _replace(LossStats, "reduce", lambda self, all_sum: self._at_once(lambda sums_K: _alone(all_sum, sums_K)))


def _alone(all_sum: Callable[[Tensor], Tensor], sums_K: Tensor) -> Tensor:
    # All ranks meet in it, and it brings to the CPU what it sums up.
    all_sum(sums_K)
    return sums_K.cpu()


def _divisor() -> None:
    """A rank divides by its own targets, as if they were those of all."""
    counted = counting._targets

    def own(of: Any, micro_batches: Any) -> Any:
        counts = [counted(batch) for batch in micro_batches]
        return torch.stack([count for count in counts if count is not None]).sum()

    _replace(counting, "count_targets", own)


def _mask() -> None:
    """The last target of each batch is lost."""
    select = targets.select

    def without_the_last(*args: Any, **kwargs: Any) -> Any:
        found = select(*args, **kwargs)
        return replace(found, positions_T=found.positions_T[:-1], ids_T=found.ids_T[:-1])

    _replace(targets, "select", without_the_last)


def _guard() -> None:
    """Nobody looks whether a step's loss was ours."""
    _replace(trainer.TrainerHook, "_require", lambda self, calls, happened: None)


def _replace(owner: Any, name: str, value: Any) -> None:
    """Put something in the place of what is there: where nothing is, nothing would be broken."""
    if name not in vars(owner):
        raise AttributeError(f"{owner.__name__} has no {name} to break")
    setattr(owner, name, value)


MUTATIONS: dict[str, Callable[[], None]] = {
    "reduction": _reduction,
    "divisor": _divisor,
    "mask": _mask,
    "guard": _guard,
}
