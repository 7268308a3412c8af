"""Rows of logits to statistics and weights, whatever their number.

Shapes: T rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from dft_plugin.errors import PluginError
from dft_plugin.kernels.softmax import Scored, accumulation_dtype, block_scorer
from dft_plugin.kernels.types import Transform
from dft_plugin.objectives import Objective, Rows, RowStatistic

_CACHE_ELEMENTS = 1 << 19
"""Elements of a row block on a CPU: 2 MB of float32, so that the passes stay in the cache."""

_ACCELERATOR_ELEMENTS = 1 << 24
"""The same elsewhere: 64 MB of float32, enough to fill a device, little beside a chunk of logits."""


def block_rows(device_type: str, vocab_size: int) -> int:
    """Return how many rows of logits are worked on at a time."""
    elements = _CACHE_ELEMENTS if device_type == "cpu" else _ACCELERATOR_ELEMENTS
    return max(1, elements // max(vocab_size, 1))


def score_rows_(
    logits_TV: Tensor,
    targets_T: Tensor,
    transform: Transform,
    needs: frozenset[RowStatistic] = frozenset(),
) -> Scored:
    """Score rows of raw logits, block by block, and overwrite them with their unnormalised gradient.

    Args:
        logits_TV: raw logits of any float dtype; overwritten, see `softmax.score_block_`.
        targets_T: int64 targets in [0, V).
        transform: what the model does to raw logits.
        needs: costly statistics to compute as well.
    """
    T, V = logits_TV.shape
    if not T:
        return _no_rows(logits_TV.new_empty(0, dtype=accumulation_dtype(logits_TV.dtype)), needs)
    score_block_ = block_scorer(logits_TV.device.type)
    step = block_rows(logits_TV.device.type, V)
    parts = [
        score_block_(logits_TV[start : start + step], targets_T[start : start + step], transform, needs)
        for start in range(0, T, step)
    ]
    return Scored(
        concatenate([part.rows for part in parts]),
        torch.cat([part.inverse_norm_T for part in parts]),
    )


def concatenate(parts: list[Rows]) -> Rows:
    """Join the statistics of consecutive blocks of rows."""
    columns: dict[str, Any] = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Rows)}
    joined: dict[str, Any] = {name: None if c[0] is None else torch.cat(c) for name, c in columns.items()}
    return Rows(**joined)


def _no_rows(empty: Tensor, needs: frozenset[RowStatistic]) -> Scored:
    rows = Rows(
        logp_T=empty,
        one_minus_p_T=empty,
        is_top1_T=empty.bool(),
        entropy_T=empty if "entropy" in needs else None,
        sum_p_squared_T=empty if "sum_p_squared" in needs else None,
    )
    return Scored(rows, empty)


def weighted_sum(objective: Objective, rows: Rows) -> tuple[Tensor, Tensor]:
    """Weigh scored rows.

    Args:
        objective: gives each row its weight.
        rows: statistics of T rows.

    Returns:
        `(loss_sum, weight_T)`: the sum of -w * log p in nats, and w, both detached. A weight of zero
        takes a token out even where log p is -inf.

    Raises:
        PluginError: the objective does not return one weight for each row.
    """
    weight_T = objective.weight(rows).detach().to(rows.logp_T.dtype)
    if weight_T.shape != rows.logp_T.shape:
        raise PluginError(
            f"the objective {objective.name} returned weights of shape {tuple(weight_T.shape)} for "
            f"{rows.logp_T.numel()} tokens; return one weight for each token, [{rows.logp_T.numel()}]."
        )
    loss_T = torch.where(weight_T == 0, torch.zeros_like(weight_T), -weight_T * rows.logp_T)
    return loss_T.sum(), weight_T
