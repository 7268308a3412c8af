"""Statistics of one pass, summed over ranks and brought to the CPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dft_plugin.core.stats import LossStats, Tally
from dft_plugin.hf.counting import context_parallel_size, tensor_parallel_size
from dft_plugin.hf.evaluation import EvaluationRows


def reduced(trainer: Any, tally: Tally, rows: EvaluationRows | None) -> LossStats:
    """Return what a pass has tallied, over all ranks, and forget it. Every rank must call it.

    Ranks that hold copies of the same rows count once.

    Args:
        trainer: a `transformers.Trainer`.
        tally: of the pass.
        rows: which rows of an evaluation's batches count; None in training.
    """
    accelerator = trainer.accelerator
    copies = float(tensor_parallel_size(trainer))
    if rows is not None and rows.digest is not None:
        copies = rows.copies(accelerator) / context_parallel_size(trainer)

    def all_sum(sums_K: Tensor) -> Tensor:
        total: Tensor = accelerator.reduce(sums_K.to(accelerator.device) / copies, reduction="sum")
        return total

    return tally.take(accelerator.device).reduce(all_sum).read()
