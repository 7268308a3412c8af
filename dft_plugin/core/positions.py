"""What was made of scored tokens, put back where the tokens stand: for who sums losses up by himself.

Shapes: B batch, S sequence, T scored tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dft_plugin.core.loss import LossResult


def losses(result: LossResult) -> Tensor:
    """Return the loss of each position [B, S]: their sum is the loss sum, and has its gradient.

    Whoever sums them up has to give each the same upstream gradient; that is the one of the sum.
    """
    values = place(result.scored.loss_T, mask(result))
    spread: Tensor = _Spread.apply(result.loss_sum, values)  # type: ignore[no-untyped-call]
    return spread


def mask(result: LossResult) -> Tensor:
    """Return which positions were scored: bool [B, S], on the device of the loss."""
    return result.selection.mask(result.scored.rows.logp_T.device)


def place(values_T: Tensor, mask_BS: Tensor) -> Tensor:
    """Return values at the positions of their tokens, 0 elsewhere: [B, S]."""
    return values_T.new_zeros(mask_BS.shape).masked_scatter(mask_BS, values_T)


class _Spread(torch.autograd.Function):
    """Values per token whose sum has the gradient of `loss_sum`."""

    @staticmethod
    def forward(ctx: Any, loss_sum: Tensor, values_BS: Tensor) -> Tensor:
        return values_BS.clone()

    @staticmethod
    def backward(ctx: Any, upstream_BS: Tensor) -> tuple[Tensor, None]:
        return upstream_BS.reshape(-1)[0], None
