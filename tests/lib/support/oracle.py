"""The loss written out by hand in float64, with nothing of dft_plugin in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Weight = Callable[[Tensor], Tensor]


def dft(p: Tensor) -> Tensor:
    """arXiv 2508.05629, eq. 9."""
    return p


def nll(p: Tensor) -> Tensor:
    return torch.ones_like(p)


def token_losses(logits: Tensor, labels: Tensor, weight: Weight = dft) -> Tensor:
    """Losses [T] of the labels that are not -100; labels are aligned with the logits."""
    logits, labels = logits.double().reshape(-1, logits.shape[-1]), labels.reshape(-1).long()
    kept = labels != -100
    chosen = logits[kept].gather(1, labels[kept][:, None])[:, 0]
    logp = chosen - torch.logsumexp(logits[kept], 1)
    return -weight(logp.detach().exp()) * logp


def loss(logits: Tensor, labels: Tensor, weight: Weight = dft, num_items: float | None = None) -> Tensor:
    losses = token_losses(logits, labels, weight)
    return losses.sum() / (losses.numel() if num_items is None else num_items)


def causal_loss(model: Any, batch: dict[str, Tensor], weight: Weight = dft) -> Tensor:
    """Loss of a causal LM on unshifted labels, from the logits of its own forward."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs).logits
    return loss(logits[:, :-1], batch["labels"][:, 1:], weight)
