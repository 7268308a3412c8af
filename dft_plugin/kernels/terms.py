"""Soft targets: what an objective that reads a reference's distribution adds to the loss of a row of logits.

Of a token with weight w and strength c the gradient on the transformed logits is
`w * (softmax - onehot) + c * (softmax - Q)`, with Q made of the reference's logits. Both heads' logits exist for a
chunk of tokens only.

Shapes: T scored tokens, C tokens of a chunk, B of a block, D hidden size, V vocabulary, N positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dft_plugin.errors import PluginError
from dft_plugin.kernels.results import join, weigh
from dft_plugin.kernels.rows import block_rows
from dft_plugin.kernels.scoring import score_rows_
from dft_plugin.kernels.softmax import HALF_PEAK, accumulation_dtype, exponential_, transform_
from dft_plugin.kernels.types import KernelResult, Transform
from dft_plugin.objectives import SOFT_ENTROPY, SOFT_KL, Distribution, RowStatistic, Targets, Weigher

_LEAST, _MOST_KL = -1e30, 1e9
"""In nats: what stands for -inf in a product that may be 0, and a KL divergence beyond which it was in there."""


def is_soft(objective: Weigher) -> bool:
    """Whether an objective has soft targets.

    Raises:
        PluginError: it has, and its weights look at other tokens.
    """
    if objective.reference != "distribution":
        return False
    if objective.scope != "token":
        raise PluginError(
            f"the objective {objective.name} reads a reference's distribution, and its scope is {objective.scope}; "
            "with such a reference only the scope `token` is allowed."
        )
    return True


def distribution_of(objective: Weigher, targets: Targets) -> Distribution:
    """Return what the reference says.

    Raises:
        PluginError: there is no reference.
    """
    if targets.reference is None:
        raise PluginError(
            f"the objective {objective.name} compares the model with a frozen reference, and there is none here. Use "
            "dft_plugin.attach(model, {name: ..., reference: ...}) or activate(trainer, ...)."
        )
    return targets.reference


@dataclass(frozen=True)
class ByHead:
    """A `Distribution` of hidden states, behind the reference's head.

    Attributes:
        hidden_TD: what the reference gives to its head.
        project: hidden [C, D] to raw logits [C, V].
        transform: what the reference does to raw logits.
        autocast: its dtype for the head, None where it is off.
    """

    hidden_TD: Tensor
    project: Callable[[Tensor], Tensor]
    transform: Transform
    autocast: torch.dtype | None

    def __getitem__(self, chunk: slice) -> ByHead:
        """Return that of some tokens."""
        return replace(self, hidden_TD=self.hidden_TD[chunk])

    def held(self) -> OfLogits:
        """Call the head, once."""
        device = self.hidden_TD.device.type
        with torch.no_grad(), torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None):
            return OfLogits(self.project(self.hidden_TD), self.transform)

    def logits(self) -> Tensor:
        """Call the head, once."""
        return self.held().logits()


@dataclass(frozen=True)
class OfLogits:
    """A `Distribution` of logits that exist.

    Attributes:
        logits_NV: raw, of any float dtype; they stay as they are.
        transform: what the reference does to them.
        index_T: int64, which rows of them are meant; None: all.
    """

    logits_NV: Tensor
    transform: Transform
    index_T: Tensor | None = None

    def __getitem__(self, chunk: slice) -> OfLogits:
        """Return that of some tokens."""
        if self.index_T is None:
            return replace(self, logits_NV=self.logits_NV[chunk])
        return replace(self, index_T=self.index_T[chunk])

    def held(self) -> OfLogits:
        """Return itself."""
        return self

    def logits(self) -> Tensor:
        """Copy them."""
        rows_TV = self.logits_NV if self.index_T is None else self.logits_NV[self.index_T]
        return _transformed_copy(rows_TV, self.transform)[0]


def soft_values(objective: Weigher, targets: Targets, logp_BV: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Compare rows with their soft targets.

    Args:
        objective: has soft targets.
        targets: of the rows, with the reference.
        logp_BV: log-probabilities of the model.

    Returns:
        `(Q [B, V], values)`: what the objective reads in `Rows.added`.
    """
    logits_BV = objective.soft_targets(distribution_of(objective, targets).logits().to(logp_BV), targets.ids_T)
    logq_BV, q_BV = _both_softmax(logits_BV)
    # 0 * -inf, of a token that is impossible, is 0; and where only the model finds it so, KL is infinite.
    logq_BV.clamp_(min=_LEAST)
    work_BV = q_BV * logq_BV
    entropy_B = -work_BV.sum(-1)
    kl_B = torch.clamp(logp_BV, min=_LEAST, out=work_BV).sub_(logq_BV).mul_(q_BV).sum(-1).neg_()
    return q_BV, {SOFT_KL: kl_B.masked_fill_(kl_B > _MOST_KL, torch.inf), SOFT_ENTROPY: entropy_B}


def score_softly_(
    logits_CV: Tensor,
    targets: Targets,
    objective: Weigher,
    transform: Transform,
    needs: frozenset[RowStatistic] = frozenset(),
    *,
    peak: float = HALF_PEAK,
) -> tuple[KernelResult, Tensor]:
    """Score rows of raw logits against targets and soft targets, and overwrite them with their gradient.

    In float32, a block of rows at a time: in half precision the two parts, which nearly cancel where model and
    reference agree, would leave their rounding errors.

    Args:
        logits_CV: raw logits of any float dtype; overwritten.
        targets: with the reference.
        objective: has soft targets.
        transform: what the model does to raw logits.
        needs: costly statistics to compute as well.
        peak: largest entry of a row of gradients in half precision.

    Returns:
        `(result, factor_C)`: the gradient on the raw logits is what was written, times the factor.
    """
    # Four copies of a block are worked on at a time.
    step = block_rows(logits_CV.device.type, 4 * logits_CV.shape[1])
    targets = replace(targets, reference=distribution_of(objective, targets).held())
    parts, factors = [], []
    for start in range(0, max(logits_CV.shape[0], 1), step):
        block = slice(start, start + step)
        part, gradient_BV = _score_block(logits_CV[block], targets[block], objective, transform, needs)
        parts.append(part)
        factors.append(_store(logits_CV[block], gradient_BV, peak))
    return join(parts), torch.cat(factors)


def _score_block(
    raw_BV: Tensor, targets: Targets, objective: Weigher, transform: Transform, needs: frozenset[RowStatistic]
) -> tuple[KernelResult, Tensor]:
    """Return the result of a block, and the gradient on its raw logits, in the dtype of sums."""
    hard_BV = raw_BV.to(accumulation_dtype(raw_BV.dtype), copy=True)
    scored = score_rows_(hard_BV, targets.ids_T, transform, needs)
    x_BV, slope_BV = _transformed_copy(raw_BV, transform)
    logp_BV, p_BV = _both_softmax(x_BV)
    q_BV, values = soft_values(objective, targets, logp_BV)
    part = weigh(objective, replace(scored.rows, added={**scored.rows.added, **values}), targets)
    assert part.soft_T is not None
    soft_BV = p_BV.sub_(q_BV)
    # Near certainty the target's difference has lost its digits; the others, with which it sums to zero, have not.
    target_B1 = targets.ids_T[:, None]
    soft_BV.scatter_(1, target_B1, 0.0)
    soft_BV.scatter_(1, target_B1, -soft_BV.sum(1, keepdim=True))
    if slope_BV is not None:
        soft_BV.mul_(slope_BV)
    soft_BV.mul_(part.soft_T[:, None] * transform.scale)
    return part, soft_BV.addcmul_(hard_BV, (part.weight_T * scored.inverse_norm_T)[:, None])


def _both_softmax(x_BV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the softmax, in the memory of what is given, and the softmax, with one exponential."""
    y_BV = x_BV.sub_(x_BV.amax(1, keepdim=True))
    e_BV = exponential_(y_BV.clone())
    norm_B1 = e_BV.sum(1, keepdim=True)
    return y_BV.sub_(norm_B1.log()), e_BV.mul_(1 / norm_B1)


def _store(out_BV: Tensor, gradient_BV: Tensor, peak: float) -> Tensor:
    """Write a gradient to where the logits were; returns by what its rows are to be multiplied, [B]."""
    if out_BV.dtype == gradient_BV.dtype:
        out_BV.copy_(gradient_BV)
        return gradient_BV.new_ones(gradient_BV.shape[0])
    largest_B1 = gradient_BV.abs().amax(1, keepdim=True)
    # A row of zeros stays one.
    factor_B1 = (largest_B1 / peak).clamp_(min=torch.finfo(largest_B1.dtype).tiny)
    out_BV.copy_(gradient_BV.div_(factor_B1))
    return factor_B1[:, 0]


def _transformed_copy(raw_BV: Tensor, transform: Transform) -> tuple[Tensor, Tensor | None]:
    """Return transformed logits in the dtype of sums, and the slope of a softcap at each."""
    x_BV = raw_BV.to(accumulation_dtype(raw_BV.dtype), copy=True)
    return x_BV, transform_(x_BV, transform)
