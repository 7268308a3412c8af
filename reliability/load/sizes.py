"""Sizes at which something else breaks: a vocabulary of a million, 128k tokens, one token. Right by float64 in chunks.

Shapes: T tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dft_plugin import attach, linear_token_loss
from reliability.load import tiny, watch
from reliability.load.soak import Row

CHUNK = 1 << 25
"""Logits of the oracle at a time: 256 MiB of float64."""


def by_hand(hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor) -> tuple[float, Tensor, Tensor]:
    """Return DFT's mean loss and its gradients on hidden states and weight, in float64, some tokens at a time."""
    kept = labels_T != -100
    count = int(kept.sum()) or 1
    hidden_TH, weight_VH = hidden_TH.detach().double(), weight_VH.detach().double()
    grad_TH, grad_VH, total = torch.zeros_like(hidden_TH), torch.zeros_like(weight_VH), 0.0
    for rows in _chunks(kept.nonzero()[:, 0], max(1, CHUNK // weight_VH.shape[0])):
        logp_CV = (hidden_TH[rows] @ weight_VH.T).log_softmax(1)
        logp_C = logp_CV.gather(1, labels_T[rows, None])[:, 0]
        total += float(-(logp_C.exp() * logp_C).sum())
        gradient_CV = logp_CV.exp_()
        gradient_CV[torch.arange(len(rows)), labels_T[rows]] -= 1
        gradient_CV *= logp_C.exp()[:, None] / count
        grad_TH[rows] = gradient_CV @ weight_VH
        grad_VH += gradient_CV.T @ hidden_TH[rows]
    return total / count, grad_TH, grad_VH


def _chunks(rows: Tensor, size: int) -> Iterator[Tensor]:
    yield from rows.split(size)


def of_head(tokens: int, vocab: int, width: int, *, trained: bool) -> Row:
    """Score hidden states behind a head, and compare; of memory what the call itself adds."""
    generator = torch.Generator().manual_seed(0)
    hidden_TH = torch.randn(tokens, width, generator=generator).requires_grad_()
    weight_VH = (torch.randn(vocab, width, generator=generator) / width**0.5).requires_grad_(trained)
    labels_T = torch.randint(0, vocab, (tokens,), generator=generator)
    if tokens > 1:
        labels_T[:: max(2, tokens // 8)] = -100
    before, began = watch.peak_mib(), time.perf_counter()
    loss = linear_token_loss(hidden_TH, weight_VH, labels_T)
    loss.backward()
    seconds, added = time.perf_counter() - began, watch.peak_mib() - before
    right, grad_TH, grad_VH = by_hand(hidden_TH, weight_VH, labels_T)
    gaps = {"loss": abs(float(loss.detach()) - right) / abs(right), "hidden": _gap(hidden_TH.grad, grad_TH)}
    if trained:
        gaps["weight"] = _gap(weight_VH.grad, grad_VH)
    return {
        "what": f"{'trained' if trained else 'frozen'} head",
        "tokens": tokens,
        "vocab": vocab,
        "width": width,
        "gaps": gaps,
        "seconds": round(seconds, 2),
        "added_mib": round(added, 1),
        "logits_mib": round(tokens * vocab * 4 / watch.MIB, 1),
    }


def of_model(tokens: int, vocab: int = 512, width: int = 32, rows: int = 1) -> Row:
    """Train a step of a model without layers, whose attention would take hours, on sequences that long."""
    model = tiny.model(layers=0, vocab=vocab, width=width)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab, (rows, tokens), generator=generator)
    attachment = attach(model)
    before, began = watch.peak_mib(), time.perf_counter()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    seconds, added = time.perf_counter() - began, watch.peak_mib() - before
    ours = model.lm_head.weight.grad
    attachment.detach()
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state[:, :-1].reshape(-1, width)
    right, _, grad_VH = by_hand(hidden, model.lm_head.weight, ids[:, 1:].reshape(-1))
    gaps = {"loss": abs(float(loss.detach()) - right) / (abs(right) or 1.0), "weight": _gap(ours, grad_VH)}
    return {
        "what": "model",
        "tokens": rows * tokens,
        "vocab": vocab,
        "width": width,
        "gaps": gaps,
        "seconds": round(seconds, 2),
        "added_mib": round(added, 1),
        "logits_mib": round(rows * tokens * vocab * 4 / watch.MIB, 1),
    }


def _gap(ours: Tensor | None, right: Tensor) -> float:
    """Return the norm of the difference over that of what is right."""
    if ours is None:
        return 0.0 if not bool(right.any()) else float("inf")
    norm = float(right.norm())
    return float((ours.double() - right).norm()) / (norm or 1.0)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "a vocabulary of a million, trained": (of_head, {"tokens": 64, "vocab": 1_000_000, "width": 64, "trained": True}),
    "a vocabulary of a million, frozen": (of_head, {"tokens": 64, "vocab": 1_000_000, "width": 64, "trained": False}),
    "128k tokens, trained": (of_head, {"tokens": 1 << 17, "vocab": 4096, "width": 64, "trained": True}),
    "128k tokens, frozen": (of_head, {"tokens": 1 << 17, "vocab": 4096, "width": 64, "trained": False}),
    "a sequence of 128k in a model": (of_model, {"tokens": 1 << 17}),
    "a batch of one token": (of_head, {"tokens": 1, "vocab": 128, "width": 32, "trained": True}),
    "a sequence of two tokens, one of them predicted": (of_model, {"tokens": 2}),
    "a sequence of one token, nothing to predict": (of_model, {"tokens": 1}),
}
"""Each in a process of its own, so that its peak is its own."""
