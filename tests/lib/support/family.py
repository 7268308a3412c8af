"""Every objective written out by hand in float64: the functions have nothing of dft_plugin in them.

Each function takes logits [T, V] of a graph, targets [T] and what else it reads, and returns the loss of each token
[T], whose sum is what a step divides. sg is `detach`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dft_plugin.objectives import (
    DEFT,
    DFT,
    EAFT,
    IDFT,
    IWSFT,
    NLL,
    PSFT,
    ChordPhi,
    Focal,
    Objective,
    PriFT,
    ProFit,
    Thresholded,
)
from support import oracle


def _p(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    logp = oracle.log_probabilities(logits, ids)
    return logp, logp.detach().exp()


def nll(logits: Tensor, ids: Tensor, **_: Any) -> Tensor:
    return -_p(logits, ids)[0]


def dft(logits: Tensor, ids: Tensor, **_: Any) -> Tensor:
    logp, p = _p(logits, ids)
    return -p * logp


def half_dft(logits: Tensor, ids: Tensor, **_: Any) -> Tensor:
    """alpha 0.5, floor 0.1."""
    logp, p = _p(logits, ids)
    return -p.sqrt().clamp(min=0.1) * logp


def eaft(logits: Tensor, ids: Tensor, normalizer: float = math.log(20), alpha: float = 1.0, **_: Any) -> Tensor:
    logp, _p_T = _p(logits, ids)
    top = logits.detach().double().sort(1, descending=True).values[:, :20]
    q = top.exp() / top.exp().sum(1, keepdim=True)
    entropy = -(q * q.log()).nan_to_num().sum(1)
    return -((entropy / normalizer) ** alpha) * logp


def idft(logits: Tensor, ids: Tensor, strength: float = 1.0, beta: float = 1.0, **_: Any) -> Tensor:
    logp, p = _p(logits, ids)
    every = logits.detach().double().softmax(1)
    entropy = -(every * every.log()).nan_to_num().sum(1)
    gamma = 1 + strength * (torch.exp(-(logp.detach() + entropy) / beta).clamp(0.1, 2) - 1)
    return -(p**gamma) * logp


def deft(logits: Tensor, ids: Tensor, **_: Any) -> Tensor:
    logp, _p_T = _p(logits, ids)
    a = logits.detach().double().softmax(1).square().sum(1)
    return (1 - logp.exp() ** a) / (a + 1e-6)


def profit(logits: Tensor, ids: Tensor, threshold: float = 0.1, **_: Any) -> Tensor:
    logp, p = _p(logits, ids)
    return -(p >= threshold).double() * logp


def thresholded(logits: Tensor, ids: Tensor, **_: Any) -> Tensor:
    logp, p = _p(logits, ids)
    return -(p >= 0.2).double() * logp


def thresholded_p_below(logits: Tensor, ids: Tensor, **_: Any) -> Tensor:
    logp, p = _p(logits, ids)
    return (p <= 0.2).double() * (1 - logp.exp())


def chord_phi(logits: Tensor, ids: Tensor, **_: Any) -> Tensor:
    logp, p = _p(logits, ids)
    return -p * (1 - p) * logp


def focal(logits: Tensor, ids: Tensor, gamma: float = 2.0, **_: Any) -> Tensor:
    logp, p = _p(logits, ids)
    return -((1 - p) ** gamma) * logp


def prift(logits: Tensor, ids: Tensor, *, ref_logp: Tensor, **_: Any) -> Tensor:
    return -ref_logp.double().exp() * _p(logits, ids)[0]


def prift_mass(logits: Tensor, ids: Tensor, *, ref_mass: Tensor, **_: Any) -> Tensor:
    return -(ref_mass >= 0.5).double() * _p(logits, ids)[0]


def iw_sft(logits: Tensor, ids: Tensor, *, ref_logp: Tensor, sequence: Tensor, **_: Any) -> Tensor:
    logp, _p_T = _p(logits, ids)
    ratio = logp.detach() - ref_logp.double()
    mean = torch.stack([ratio[sequence == number].mean() for number in sequence.tolist()])
    return -mean.exp().clamp(0, 16) * logp


def iw_sft_token(logits: Tensor, ids: Tensor, *, ref_logp: Tensor, **_: Any) -> Tensor:
    logp, _p_T = _p(logits, ids)
    return -(logp.detach() - ref_logp.double()).exp().clamp(0.2, 1.8) * logp


def psft(logits: Tensor, ids: Tensor, *, old_logp: Tensor, high: float = 0.28, low: float = 0.2, **_: Any) -> Tensor:
    ratio = (_p(logits, ids)[0] - old_logp.double()).exp()
    return -torch.minimum(ratio, ratio.clamp(1 - low, 1 + high))


FORMULAS: list[tuple[Objective, Callable[..., Tensor]]] = [
    (NLL(), nll),
    (DFT(), dft),
    (DFT(alpha=0.5, floor=0.1), half_dft),
    (EAFT(), eaft),
    (EAFT(normalizer=3), lambda *a, **k: eaft(*a, normalizer=3, **k)),
    (EAFT(alpha=2), lambda *a, **k: eaft(*a, alpha=2, **k)),
    (IDFT(), idft),
    (IDFT(strength=0.3, beta=2), lambda *a, **k: idft(*a, strength=0.3, beta=2, **k)),
    (DEFT(), deft),
    (ProFit(), profit),
    (Thresholded(), thresholded),
    (Thresholded(keep="below", of="p"), thresholded_p_below),
    (ChordPhi(), chord_phi),
    (Focal(), focal),
    (Focal(gamma=0.5), lambda *a, **k: focal(*a, gamma=0.5, **k)),
    (PriFT(), prift),
    (PriFT(by="mass"), prift_mass),
    (IWSFT(), iw_sft),
    (IWSFT(per="token"), iw_sft_token),
    (PSFT(), psft),
]
NAMES = [repr(objective) for objective, _ in FORMULAS]
