"""A kernel's result: made from rows, joined from parts, carried through an autograd.Function.

Shapes: T rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from dft_plugin.errors import PluginError
from dft_plugin.kernels.rows import concatenate
from dft_plugin.kernels.types import KernelResult
from dft_plugin.objectives import Objective, Rows


def weigh(objective: Objective, rows: Rows) -> KernelResult:
    """Weigh scored rows, and sum -w * log p in nats; everything is detached.

    A weight of zero takes a token out even where log p is -inf.

    Args:
        objective: gives each row its weight.
        rows: statistics of T rows.

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
    return KernelResult(loss_T.sum(), rows, weight_T)


def join(parts: Sequence[KernelResult]) -> KernelResult:
    """Join the results of consecutive rows: one part at least."""
    loss_sum = parts[0].loss_sum
    for part in parts[1:]:
        loss_sum = loss_sum + part.loss_sum
    return KernelResult(
        loss_sum,
        concatenate([part.rows for part in parts]),
        torch.cat([part.weight_T for part in parts]),
    )


def as_outputs(ctx: Any, result: KernelResult) -> tuple[Tensor | None, ...]:
    """Return what `forward` of a kernel's Function returns: the sum, and statistics without a gradient."""
    statistics = [result.weight_T, *(getattr(result.rows, field.name) for field in fields(Rows))]
    ctx.mark_non_differentiable(*[tensor for tensor in statistics if tensor is not None])
    return result.loss_sum, *statistics


def from_outputs(outputs: Sequence[Any]) -> KernelResult:
    """Return the result that `as_outputs` took apart."""
    loss_sum, weight_T, *rows = outputs
    return KernelResult(loss_sum, Rows(*rows), weight_T)
