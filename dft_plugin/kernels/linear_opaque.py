"""Token loss behind a head that can be called but not read (DoRA, quantised, tensor-parallel).

Shapes: T scored tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dft_plugin.kernels.budget import chunk_rows
from dft_plugin.kernels.logits import score_logits
from dft_plugin.kernels.results import join
from dft_plugin.kernels.softmax import accumulation_dtype
from dft_plugin.kernels.types import KernelResult, OpaqueHead
from dft_plugin.objectives import Objective, RowStatistic


def opaque(
    hidden_TD: Tensor,
    head: OpaqueHead,
    targets_T: Tensor,
    objective: Objective,
    *,
    needs: frozenset[RowStatistic] = frozenset(),
    scratch_bytes: int | None = None,
) -> KernelResult:
    """Call the head on chunks of tokens, each under a checkpoint, and score its logits.

    Costs one projection more than `chunked`, since backward calls the head again; in exchange the head
    keeps its own forward, hooks and gradients. Memory: some copies of one chunk of logits.

    Args:
        hidden_TD: what the model gives to its head, only scored positions.
        head: the projection.
        targets_T: int64 targets in [0, V).
        objective: gives the weights.
        needs: costly statistics to return.
        scratch_bytes: bound on the logits of a chunk, counted in float32; None: see `budget.chunk_rows`.
    """
    T = hidden_TD.shape[0]
    step = chunk_rows(hidden_TD.device.type, 4 * head.vocab_size, scratch_bytes, tokens=T, weight_trained=False)

    def score(hidden_CD: Tensor, targets_C: Tensor) -> KernelResult:
        logits_CV = head.project(hidden_CD)
        logits_CV = head.transform(logits_CV.to(accumulation_dtype(logits_CV.dtype)))
        everything_C = torch.ones_like(targets_C, dtype=torch.bool)
        return score_logits(logits_CV, everything_C, targets_C, objective, needs=needs)

    parts: list[KernelResult] = [
        checkpoint(score, hidden_TD[start : start + step], targets_T[start : start + step], use_reentrant=False)
        for start in range(0, max(T, 1), step)
    ]
    return join(parts)
