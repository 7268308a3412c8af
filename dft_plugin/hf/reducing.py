"""Statistics of one pass, summed over ranks and brought to the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dft_plugin.core.stats import LossStats, Tally
from dft_plugin.core.transfer import bring
from dft_plugin.hf.counting import context_parallel_size, tensor_parallel_size
from dft_plugin.hf.evaluation import EvaluationRows


def reduced(
    trainer: Any, tally: Tally, rows: EvaluationRows | None, whole: Tensor | None = None
) -> tuple[LossStats, bool]:
    """Return what a pass has tallied, over all ranks, and forget it. Every rank must call it.

    Ranks that hold copies of the same rows count once.

    Args:
        trainer: a `transformers.Trainer`.
        tally: of the pass.
        rows: which rows of an evaluation's batches count; None in training.
        whole: what else has to be finite: a scalar.

    Returns:
        The statistics, on the CPU, and whether they and `whole` are finite on all ranks.
    """
    accelerator = trainer.accelerator
    copies = float(tensor_parallel_size(trainer))
    if rows is not None and rows.digest is not None:
        copies = rows.copies(accelerator) / context_parallel_size(trainer)
    finite = True

    def all_sum(sums_K: Tensor) -> Tensor:
        nonlocal finite
        sums_K = sums_K.to(accelerator.device) / copies
        more = sums_K.new_zeros(1) if whole is None else bring(whole, sums_K.device).reshape(1).to(sums_K)
        every: Tensor = accelerator.reduce(torch.cat([sums_K, more]), reduction="sum").cpu()
        finite = bool(every.isfinite().all())
        return every[:-1]

    stats = tally.take(accelerator.device).reduce(all_sum)
    return stats, finite
