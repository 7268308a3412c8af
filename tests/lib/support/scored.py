"""What a kernel would return of tokens whose log-probabilities and weights are given."""

from __future__ import annotations

import torch
from torch import Tensor

from dft_plugin.kernels import KernelResult
from dft_plugin.objectives import Rows


def tokens(logp_T: Tensor, weight_T: Tensor, **statistics: Tensor) -> KernelResult:
    loss_T = torch.where(weight_T == 0, torch.zeros_like(logp_T), -weight_T * logp_T)
    rows = Rows(logp_T, -logp_T.expm1(), torch.zeros_like(logp_T, dtype=torch.bool))
    return KernelResult(loss_T.sum(), rows, weight_T, loss_T, statistics)


def tensors_of(rows: Rows) -> list[Tensor]:
    """What a kernel returned of its rows."""
    return [row for row in vars(rows).values() if isinstance(row, Tensor)]
