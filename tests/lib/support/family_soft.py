"""Objectives with soft targets, written out by hand in float64, as in `family.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import one_hot

from dft_plugin.objectives import ASFT, GIFT, Objective
from support import oracle


def asft(logits: Tensor, ids: Tensor, *, ref_logits: Tensor, strength: float = 0.05, **_: Any) -> Tensor:
    logp = oracle.log_probabilities(logits, ids)
    every, ref = logits.double().log_softmax(1), ref_logits.double().log_softmax(1)
    kl = (ref.exp() * (ref - every)).sum(1)
    return -logp.detach().exp() * logp + strength * kl


def gift(logits: Tensor, ids: Tensor, *, ref_logits: Tensor, beta: float = 20.0, **_: Any) -> Tensor:
    raised = ref_logits.double().log_softmax(1) + beta * one_hot(ids, logits.shape[1])
    return -(raised.softmax(1) * logits.double().log_softmax(1)).sum(1)


SOFT_FORMULAS: list[tuple[Objective, Callable[..., Tensor]]] = [
    (ASFT(), asft),
    (ASFT(strength=2), lambda *a, **k: asft(*a, strength=2, **k)),
    (GIFT(), gift),
    (GIFT(beta=1.5), lambda *a, **k: gift(*a, beta=1.5, **k)),
]
SOFT_NAMES = [repr(objective) for objective, _ in SOFT_FORMULAS]
