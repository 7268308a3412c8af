"""The softmax of a block of logits, in place, accurate at both ends of p.

Shapes: T rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from dft_plugin.errors import PluginError
from dft_plugin.kernels.base import Transform
from dft_plugin.objectives import Objective, Rows, RowStatistic

_CACHE_ELEMENTS = 1 << 19
"""Elements of a row block on a CPU: 2 MB of float32, so that the passes stay in the L2 cache."""


@dataclass(frozen=True)
class Scored:
    """Statistics of the rows, and the factor that turns the buffer into d(log p)/d(logits).

    Attributes:
        rows: statistics of the T rows.
        inverse_norm_T: `-d(log p_t)/d(raw logits) = buffer * inverse_norm_T`.
    """

    rows: Rows
    inverse_norm_T: Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64, else float32: p and all sums are never taken in half precision."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def score_rows_(
    logits_TV: Tensor,
    targets_T: Tensor,
    transform: Transform,
    needs: frozenset[RowStatistic] = frozenset(),
) -> Scored:
    """Score rows of raw logits, and overwrite them with their unnormalised gradient.

    With x the transformed logits, m their maximum, e_j = exp(x_j - m) and R the sum of e_j over
    all j but the target y, the buffer becomes e_j for j != y and -R for y, times the derivative of the
    transform. R is summed without the target, so that 1 - p = R / (R + e_y) keeps its digits where
    p is near 1, and log p = -log1p(R / e_y); where p is small, log p = x_y - m - log(R + e_y), which
    does not underflow.

    Args:
        logits_TV: raw logits of any float dtype; overwritten.
        targets_T: int64 targets in [0, V).
        transform: what the model does to raw logits.
        needs: costly statistics to compute as well.
    """
    T, V = logits_TV.shape
    work_dtype = accumulation_dtype(logits_TV.dtype)
    block = T if logits_TV.device.type != "cpu" else max(1, _CACHE_ELEMENTS // V)
    parts = [
        _score_block_(logits_TV[start : start + block], targets_T[start : start + block], transform, needs, work_dtype)
        for start in range(0, T, max(block, 1))
    ]
    if not parts:
        parts = [_no_rows(logits_TV.new_empty(0, dtype=work_dtype), needs)]
    return Scored(
        concatenate([part.rows for part in parts]),
        torch.cat([part.inverse_norm_T for part in parts]),
    )


def concatenate(parts: list[Rows]) -> Rows:
    """Join the statistics of consecutive blocks of rows."""
    columns: dict[str, Any] = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Rows)}
    joined: dict[str, Any] = {name: None if c[0] is None else torch.cat(c) for name, c in columns.items()}
    return Rows(**joined)


def _score_block_(
    logits_TV: Tensor,
    targets_T: Tensor,
    transform: Transform,
    needs: frozenset[RowStatistic],
    work_dtype: torch.dtype,
) -> Scored:
    x_TV = logits_TV if logits_TV.dtype == work_dtype else logits_TV.to(work_dtype)
    if transform.scale != 1.0:
        x_TV.mul_(transform.scale)
    tanh_TV = None
    if transform.softcap is not None:
        tanh_TV = x_TV.div_(transform.softcap).tanh_().clone()
        x_TV.mul_(transform.softcap)
    target_T1 = targets_T[:, None]
    max_T1 = x_TV.amax(1, keepdim=True)
    x_target_T1 = x_TV.gather(1, target_T1)
    e_TV = x_TV.sub_(max_T1).exp_()
    e_target_T1 = e_TV.gather(1, target_T1)
    e_TV.scatter_(1, target_T1, 0.0)
    rest_T1 = e_TV.sum(1, keepdim=True)
    norm_T1 = rest_T1 + e_target_T1

    logp_T1 = log_probability(x_target_T1, max_T1, e_target_T1, rest_T1)
    rows = Rows(
        logp_T=logp_T1[:, 0],
        one_minus_p_T=(rest_T1 / norm_T1)[:, 0],
        is_top1_T=(x_target_T1 >= max_T1)[:, 0],
        entropy_T=_entropy(e_TV, e_target_T1, norm_T1)[:, 0] if "entropy" in needs else None,
        sum_p_squared_T=(
            ((e_TV.square().sum(1, keepdim=True) + e_target_T1.square()) / norm_T1.square())[:, 0]
            if "sum_p_squared" in needs
            else None
        ),
    )

    e_TV.scatter_(1, target_T1, -rest_T1)
    if tanh_TV is not None:
        e_TV.mul_(tanh_TV.square_().neg_().add_(1.0))
    inverse_norm_T1 = transform.scale / norm_T1
    if e_TV is not logits_TV:
        # R can exceed the range of float16, so the half-precision buffer is normalised.
        logits_TV.copy_(e_TV.mul_(inverse_norm_T1))
        inverse_norm_T1 = torch.ones_like(inverse_norm_T1)
    return Scored(rows, inverse_norm_T1[:, 0])


def log_probability(x_target: Tensor, maximum: Tensor, e_target: Tensor, rest: Tensor) -> Tensor:
    """Return log p of targets, in nats, accurate where p is near 1 and where p underflows.

    Args:
        x_target: transformed logit of the target.
        maximum: m, the largest transformed logit of the row.
        e_target: exp(x_target - m).
        rest: sum of exp(x - m) over all tokens but the target.
    """
    near_one = -torch.log1p(rest / e_target)
    return torch.where(e_target > rest, near_one, x_target - maximum - (rest + e_target).log())


def _entropy(e_TV: Tensor, e_target_T1: Tensor, norm_T1: Tensor) -> Tensor:
    # -sum p log p with p = e / norm; entr(e) = -e log e is 0 at 0, so underflowed terms drop out.
    terms_T1: Tensor = torch.special.entr(e_TV).sum(1, keepdim=True) + torch.special.entr(e_target_T1)
    return terms_T1 / norm_T1 + norm_T1.log()


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
