"""The loss written out by hand in float64, with nothing of dft_plugin in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Weight = Callable[[Tensor], Tensor]


def dft(p: Tensor) -> Tensor:
    """arXiv 2508.05629, eq. 9."""
    return p


def nll(p: Tensor) -> Tensor:
    return torch.ones_like(p)


def family(alpha: float = 1.0, floor: float = 0.0) -> Weight:
    """max(p ** alpha, floor)."""
    return lambda p: (p**alpha).clamp(min=floor)


def log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """log p [T] of the labels, none ignored, with all its digits also where p is near 1.

    log p_y = -log(sum_j e^d_j) with d_j = x_j - x_y; the largest e^d_j is taken out of the log.
    """
    logits = logits.double()
    d = logits - logits.gather(1, labels[:, None])
    largest, where = d.max(1)
    rest = (d - largest[:, None]).exp().scatter(1, where[:, None], 0.0).sum(1)
    return -(largest + rest.log1p())


def token_losses(logits: Tensor, labels: Tensor, weight: Weight = dft) -> Tensor:
    """Losses [T] of the labels that are not -100; labels are aligned with the logits."""
    logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long()
    kept = labels != -100
    logp = log_probabilities(logits[kept], labels[kept])
    return -weight(logp.detach().exp()) * logp


def loss(logits: Tensor, labels: Tensor, weight: Weight = dft, num_items: float | None = None) -> Tensor:
    losses = token_losses(logits, labels, weight)
    return losses.sum() / (losses.numel() if num_items is None else num_items)


def logits_gradient(logits: Tensor, labels: Tensor, weight: Weight = dft) -> Tensor:
    """w * (softmax - onehot) / T [T, V], without autograd; no label is ignored."""
    logp = log_probabilities(logits, labels)
    gradient = logits.double().softmax(1)
    # p - 1 as it stands would lose the digits of a p near 1.
    gradient = gradient.scatter(1, labels[:, None], logp.expm1()[:, None])
    return weight(logp.exp())[:, None] * gradient / labels.numel()


def head_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """c * tanh(scale * (h W^T + b + a B^T) / c); `low_rank` is (a [T, R], B [V, R])."""
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    if low_rank is not None:
        logits = logits + low_rank[0].double() @ low_rank[1].double().T
    logits = scale * logits
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def gap(ours: Tensor | Sequence[Tensor], truth: Tensor | Sequence[Tensor]) -> float:
    """Norm of the difference over the norm of the truth; the worst of several pairs."""
    pairs = [(ours, truth)] if isinstance(ours, Tensor) else zip(ours, truth, strict=True)
    pairs = [(a.detach().double(), b.detach().double()) for a, b in pairs]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def causal_loss(model: Any, batch: dict[str, Tensor], weight: Weight = dft) -> Tensor:
    """Loss of a causal LM on unshifted labels, from the logits of its own forward."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs).logits
    return loss(logits[:, :-1], batch["labels"][:, 1:], weight)
