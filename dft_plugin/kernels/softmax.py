"""The softmax of one block of logits, in place, accurate at both ends of p. Pointwise work and sums only.

Shapes: T rows of the block, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dft_plugin.kernels.types import Transform
from dft_plugin.objectives import Rows, RowStatistic

LOG2_E = math.log2(math.e)
"""exp(y) is taken as exp2(y * log2 e): torch has a vector form of exp2 on every CPU, of exp only on some."""

HALF_PEAK = 8.0
"""The largest entry of a row of gradients in half precision, on its way into a product.

In float16, what is a hundred thousand times smaller keeps its digits, and the product with a weight of 4000 is finite.
"""

LEAST_REST = 2.0**-100
"""Beyond, R counts as zero: what is divided by it must stay finite."""


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


def score_block_(
    logits_TV: Tensor,
    targets_T: Tensor,
    transform: Transform,
    needs: frozenset[RowStatistic] = frozenset(),
    *,
    peak: float = HALF_PEAK,
) -> Scored:
    """Score rows of raw logits, and overwrite them with their unnormalised gradient.

    With x the transformed logits, m their maximum, e_j = exp(x_j - m) and R the sum of e_j over
    all j but the target y, the buffer becomes e_j for j != y and -R for y, times the derivative of the
    transform, and in half precision times a factor that makes the target's -`peak`. R is summed without the target, so
    that 1 - p = R / (R + e_y) keeps its digits where p is near 1, and log p = -log1p(R / e_y); where p is small,
    log p = x_y - m - log(R + e_y), which does not underflow.

    Args:
        logits_TV: raw logits of any float dtype; overwritten.
        targets_T: int64 targets in [0, V).
        transform: what the model does to raw logits.
        needs: costly statistics to compute as well.
        peak: largest entry of a row of gradients in half precision.
    """
    work_dtype = accumulation_dtype(logits_TV.dtype)
    x_TV = logits_TV if logits_TV.dtype == work_dtype else logits_TV.to(work_dtype)
    slope_TV = transform_(x_TV, transform)
    target_T1 = targets_T[:, None]
    max_T1 = x_TV.amax(1, keepdim=True)
    x_target_T1 = x_TV.gather(1, target_T1)
    y_TV = x_TV.sub_(max_T1).scatter_(1, target_T1, -torch.inf)
    # The entropy wants y beside e; otherwise one buffer serves.
    e_TV = exponential_(y_TV.clone() if "entropy" in needs else y_TV)
    sums = Sums(
        max_T1,
        x_target_T1,
        rest_T1=e_TV.sum(1, keepdim=True),
        e_y_T1=sum_e_y_(e_TV, y_TV) if "entropy" in needs else None,
        squares_T1=sum_squares(e_TV) if "sum_p_squared" in needs else None,
    )
    rows, norm_T1 = sums.statistics()
    e_TV.scatter_(1, target_T1, -sums.rest_T1)
    if slope_TV is not None:
        e_TV.mul_(slope_TV)
    return Scored(rows, store_(logits_TV, e_TV, sums.rest_T1, norm_T1, peak)[:, 0] * transform.scale)


@dataclass(frozen=True)
class Sums:
    """What the statistics of T rows are made from; all [T, 1].

    Attributes:
        max_T1: m, no less than the largest transformed logit.
        x_target_T1: transformed logit of the target.
        rest_T1: R, the sum of e = exp(x - m) over all tokens but the target.
        e_y_T1: the sum of e * (x - m) over the same; None if nobody needs the entropy.
        squares_T1: the sum of e squared over the same; None if nobody needs it.
    """

    max_T1: Tensor
    x_target_T1: Tensor
    rest_T1: Tensor
    e_y_T1: Tensor | None
    squares_T1: Tensor | None

    def statistics(self) -> tuple[Rows, Tensor]:
        """Return the statistics, and the sum of e over all tokens, [T, 1]."""
        y_target_T1 = self.x_target_T1 - self.max_T1
        e_target_T1 = exponential_(y_target_T1.clone())
        norm_T1 = self.rest_T1 + e_target_T1
        entropy_T1 = squares_T1 = None
        if self.e_y_T1 is not None:
            entropy_T1 = norm_T1.log() - (self.e_y_T1 + sum_e_y_(e_target_T1, y_target_T1)) / norm_T1
        if self.squares_T1 is not None:
            squares_T1 = (self.squares_T1 + e_target_T1.square()) / norm_T1.square()
        rows = Rows(
            logp_T=log_probability(self.x_target_T1, self.max_T1, e_target_T1, self.rest_T1)[:, 0],
            one_minus_p_T=(self.rest_T1 / norm_T1)[:, 0],
            is_top1_T=(self.x_target_T1 >= self.max_T1)[:, 0],
            entropy_T=None if entropy_T1 is None else entropy_T1[:, 0],
            sum_p_squared_T=None if squares_T1 is None else squares_T1[:, 0],
        )
        return rows, norm_T1


def store_(out_TV: Tensor, e_TV: Tensor, rest_T1: Tensor, norm_T1: Tensor, peak: float = HALF_PEAK) -> Tensor:
    """Write the gradient of rows in terms of e, in which the target's entry is -R, to where the logits were.

    Half precision gets it relative to R: so neither a sum of many e leaves the range of float16, nor the gradient of
    a row whose p is near 1.

    Returns:
        [T, 1], by what the rows of `out_TV` are to be multiplied to be `softmax - onehot`.
    """
    if out_TV.dtype == e_TV.dtype:
        if out_TV is not e_TV:
            out_TV.copy_(e_TV)
        return 1 / norm_T1
    rest_T1 = rest_T1.clamp(min=LEAST_REST)
    out_TV.copy_(e_TV.mul_(peak / rest_T1))
    return rest_T1 / (peak * norm_T1)


def transform_(x_TV: Tensor, transform: Transform) -> Tensor | None:
    """Transform raw logits in place.

    Returns:
        The slope of the softcap at each of them, `1 - tanh^2`, or None for 1 everywhere.
    """
    if transform.scale != 1.0:
        x_TV.mul_(transform.scale)
    if transform.softcap is None:
        return None
    tanh_TV = x_TV.div_(transform.softcap).tanh_()
    slope_TV = 1 - tanh_TV.square()
    x_TV.mul_(transform.softcap)
    return slope_TV


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


def exponential_(y: Tensor) -> Tensor:
    """Exponentiate in place."""
    return y.mul_(LOG2_E).exp2_()


def sum_e_y_(e_TV: Tensor, y_TV: Tensor) -> Tensor:
    """Sum e * y over each row, [T, 1], with y = log e, which is overwritten; 0 * -inf counts as 0."""
    return y_TV.clamp_(min=-torch.finfo(y_TV.dtype).max).mul_(e_TV).sum(1, keepdim=True)


def sum_squares(e_TV: Tensor) -> Tensor:
    """Sum e squared over each row, [T, 1]."""
    return e_TV.square().sum(1, keepdim=True)
