"""Token loss from log-probabilities that somebody else has made of the logits.

Shapes: N positions (flattened), T scored ones.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from dft_plugin.core.loss import LossResult
from dft_plugin.core.plan import LossPlan
from dft_plugin.core.targets import IGNORE_INDEX, Facts, Selection, select
from dft_plugin.core.transfer import send
from dft_plugin.errors import DftError, LabelError, SettingsError
from dft_plugin.kernels import KernelResult
from dft_plugin.kernels.results import weigh, with_extra
from dft_plugin.objectives import Rows, Targets, Weigher

_ROUNDING = 0.01
"""By how much log p may be above 0: it is a difference of large numbers."""


class UnknownOfLogpError(DftError, AttributeError):
    """Something of a row of logits was read that log p does not tell."""


class LogpRows(Rows):
    """Rows of which log p is known, and what follows from it."""

    def __getattribute__(self, name: str) -> Any:
        """Return a field, but for what nobody knows."""
        if name == "is_top1_T":
            raise UnknownOfLogpError("`is_top1_T`, whether no token is likelier than the target")
        return super().__getattribute__(name)


def logp_loss(
    plan: LossPlan,
    logp: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    facts: Facts | None = None,
    entropy: Tensor | None = None,
    sum_p_squared: Tensor | None = None,
) -> LossResult:
    """Score log-probabilities [...] of aligned labels [...], in float32 (float64 for float64 inputs).

    Args:
        plan: its objective reads no more of a row than log p and the statistics that are given.
        logp: log-probability of each label in nats, of any float dtype, with a graph.
        labels: aligned (already shifted) labels.
        ignore_index: the label of positions that are not scored.
        facts: what else is known of the positions, and how far the run is.
        entropy: [...], of the distribution at each position, in nats; None: nobody knows.
        sum_p_squared: [...], the sum of squares over its vocabulary.

    Raises:
        LabelError: shapes do not match, a label is negative, or log p is not one.
        SettingsError: the objective reads of a row what log p does not tell.
        ClockError: the plan changes during the run, and `facts` has no clock.
    """
    _require_same_shape(labels, logp=logp, entropy=entropy, sum_p_squared=sum_p_squared)
    chosen = select(labels, ignore_index, facts)
    _require_ids(chosen)
    targets = chosen.targets(logp.device)
    positions_T = send(chosen.positions_T, logp.device)

    def at_targets(of: Tensor) -> Tensor:
        of = of if of.dtype == torch.float64 else of.float()
        return of.reshape(-1).index_select(0, positions_T)

    logp_T = at_targets(logp)
    _require_logp(logp_T)
    # A difference of large numbers may come out above 0, where powers of 1 - p would have no value.
    known_T = logp_T.detach().clamp(max=0)
    rows = LogpRows(
        known_T,
        -known_T.expm1(),
        cast("Tensor", None),
        None if entropy is None else at_targets(entropy.detach()),
        None if sum_p_squared is None else at_targets(sum_p_squared.detach()),
    )
    objective = plan.weigher(targets.clock)
    scored = _score(objective, logp_T, rows, targets)
    return LossResult(with_extra(scored, plan.extra), targets, chosen, objective, plan.statistics)


def _score(objective: Weigher, logp_T: Tensor, rows: Rows, targets: Targets) -> KernelResult:
    try:
        result = weigh(objective, rows, targets)
    except UnknownOfLogpError as error:
        raise SettingsError(
            [
                f"{objective.name} reads {error}, which log p alone does not tell. Score logits "
                "(dft_plugin.token_loss) or hidden states (dft_plugin.linear_token_loss), or take another objective."
            ]
        ) from error
    loss_sum: Tensor = _Weighted.apply(logp_T, result.weight_T, result.loss_T)  # type: ignore[no-untyped-call]
    return KernelResult(loss_sum, rows, result.weight_T, result.loss_T, result.statistics)


class _Weighted(torch.autograd.Function):
    """The sum of the losses, whatever their values; its gradient is that of `-w * log p`, w constant."""

    @staticmethod
    def forward(ctx: Any, logp_T: Tensor, weight_T: Tensor, loss_T: Tensor) -> Tensor:
        ctx.save_for_backward(weight_T)
        return loss_T.sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (weight_T,) = ctx.saved_tensors
        return -weight_T * upstream, None, None


def _require_same_shape(labels: Tensor, **given: Tensor | None) -> None:
    for name, tensor in given.items():
        if tensor is not None and tensor.shape != labels.shape:
            raise LabelError(
                f"labels have shape {tuple(labels.shape)}, and {name} {tuple(tensor.shape)}; give one number for each "
                "label."
            )


def _require_ids(chosen: Selection) -> None:
    lowest = int(chosen.ids_T.min()) if chosen.count else 0
    if lowest < 0:
        raise LabelError(
            f"labels hold {lowest}; token ids are allowed, and {chosen.ignore_index} for positions to ignore."
        )


def _require_logp(logp_T: Tensor) -> None:
    # On an accelerator the CPU would wait for the answer.
    if logp_T.device.type != "cpu" or not logp_T.numel():
        return
    largest = float(logp_T.detach().max())
    if largest > _ROUNDING:
        raise LabelError(
            f"logp holds {largest:g}; the logarithm of a probability is 0 or less. Of a loss of each token (-log p), "
            "give its negative; of probabilities, their log."
        )
