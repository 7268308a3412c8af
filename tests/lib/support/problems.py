"""Random problems for the kernels, and their answers from the oracle."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from support import oracle

ODD_SHAPES = [(1, 1, 2), (7, 3, 5), (67, 33, 517), (130, 17, 1031)]
"""Tokens, hidden size, vocabulary: one of each, and no multiple of anything."""


@dataclass(frozen=True)
class Problem:
    """Leaves that require grad, and what the model does to its logits."""

    hidden_TD: Tensor
    targets_T: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    low_rank: tuple[Tensor, Tensor] | None
    scale: float
    softcap: float | None

    @property
    def inputs(self) -> list[Tensor]:
        """Everything that gets a gradient: hidden, weight, then bias and the two of LoRA."""
        bias = [] if self.bias_V is None else [self.bias_V]
        return [self.hidden_TD, self.weight_VD, *bias, *(self.low_rank or ())]

    def logits(self) -> Tensor:
        """The transformed logits, in float64."""
        return oracle.head_logits(self.hidden_TD, self.weight_VD, self.bias_V, self.low_rank, self.scale, self.softcap)

    def truth(self, weight: oracle.Weight = oracle.dft) -> list[Tensor]:
        """The mean loss and the gradients of `inputs`; that on the logits is written by hand."""
        logits_TV = self.logits()
        upstream_TV = oracle.logits_gradient(logits_TV.detach(), self.targets_T, weight)
        gradients = torch.autograd.grad(logits_TV, self.inputs, upstream_TV)
        return [oracle.loss(logits_TV.detach(), self.targets_T, weight), *gradients]


def problem(
    shape: tuple[int, int, int] = (67, 33, 517),
    *,
    dtype: torch.dtype = torch.float32,
    bias: bool = False,
    rank: int = 0,
    scale: float = 1.0,
    softcap: float | None = None,
    seed: int = 0,
) -> Problem:
    """Every other target is the likeliest token, so that probabilities of all sizes occur."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(dtype).requires_grad_()

    T, D, V = shape
    hidden_TD, weight_VD = leaf(T, D), leaf(V, D)
    bias_V = leaf(V) if bias else None
    low_rank = (leaf(T, rank), leaf(V, rank)) if rank else None
    targets_T = torch.randint(V, (T,), generator=generator)
    made = Problem(hidden_TD, targets_T, weight_VD, bias_V, low_rank, scale, softcap)
    targets_T[::2] = made.logits().detach().argmax(1)[::2]
    return made


def logits_with_probability(p: float, *, T: int = 200, V: int = 257, seed: int = 0) -> tuple[Tensor, Tensor]:
    """float32 logits [T, V] whose targets [T] have probability `p`, but for the rounding."""
    generator = torch.Generator().manual_seed(seed)
    logits_TV = 3 * torch.randn(T, V, generator=generator, dtype=torch.float64)
    targets_T = torch.randint(V, (T,), generator=generator)
    others_T = logits_TV.scatter(1, targets_T[:, None], -math.inf).logsumexp(1)
    target_logits_T = others_T + math.log(p) - math.log1p(-p)
    return logits_TV.scatter(1, targets_T[:, None], target_logits_T[:, None]).float(), targets_T
