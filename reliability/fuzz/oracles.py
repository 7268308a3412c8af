"""Losses in float64, by the tests' own formulas, for what has them; the tests' folder is beside this package."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LIB = Path(__file__).parents[2] / "tests" / "lib"
if str(LIB) not in sys.path:
    sys.path.insert(0, str(LIB))

from support import family, oracle  # noqa: E402 - behind the path

LOSSES: dict[str, tuple[Any, Any]] = {
    "dft": ("dft", family.dft),
    "nll": ("nll", family.nll),
    "half": ({"alpha": 0.5, "floor": 0.1}, family.half_dft),
    "deft": ("deft", family.deft),
    "idft": ("idft", family.idft),
    "focal": ("focal", family.focal),
    "chord_phi": ("chord_phi", family.chord_phi),
    "twice": ({"weights": {"tokens": {0: 2.0}}}, lambda logits, ids: family.dft(logits, ids) * (1.0 + (ids == 0))),
    "always": (
        {"always_learn": [0]},
        lambda logits, ids: family.nll(logits, ids).where(ids == 0, family.dft(logits, ids)),
    ),
}
"""What is given as a loss, and what it comes to for logits [T, V] and targets [T]."""

SIMPLE = ("dft", "nll", "half")
"""Those whose value is known for logits that are not finite, too."""


@dataclass(frozen=True)
class Truth:
    """What is right.

    Attributes:
        loss: the mean.
        gradient: of the loss on the logits [T, V] of the scored tokens; None: some number is not finite.
    """

    loss: float
    gradient: Tensor | None


def truth(name: str, logits_TV: Tensor, ids_T: Tensor, divisor: float) -> Truth:
    """Return loss and gradient of scored tokens.

    Args:
        name: of `LOSSES`.
        logits_TV: of any float dtype, finite or, for `SIMPLE`, not.
        ids_T: int64.
        divisor: what the sum is divided by; 0 counts as 1.
    """
    divisor = divisor or 1.0
    logits_TV = logits_TV.detach().double()
    if not bool(torch.isfinite(logits_TV).all()):
        return Truth(_not_finite(name, logits_TV, ids_T) / divisor, None)
    leaf = logits_TV.clone().requires_grad_()
    if not ids_T.numel():
        return Truth(0.0, torch.zeros_like(logits_TV))
    losses_T = LOSSES[name][1](leaf, ids_T)
    (gradient,) = torch.autograd.grad(losses_T.sum() / divisor, leaf)
    return Truth(float(losses_T.detach().sum()) / divisor, gradient)


def _not_finite(name: str, logits_TV: Tensor, ids_T: Tensor) -> float:
    """Sum up; a token whose weight is 0 is taken out, also where its log p is -inf."""
    logp_T = logits_TV.log_softmax(-1).gather(1, ids_T[:, None])[:, 0]
    p_T = logp_T.exp()
    weight_T = {"dft": p_T, "nll": torch.ones_like(p_T), "half": p_T.sqrt().clamp(min=0.1)}[name]
    return float(torch.where(weight_T == 0, 0.0, -weight_T * logp_T).sum())


TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""Relative, by the dtype of what is scored; half precision rounds the logits that a head makes, and their gradient."""


def agree(ours: float, right: float, tolerance: float) -> bool:
    """Say whether a loss is right; where the right one is no number, ours must not look like one."""
    if math.isnan(right):
        return not math.isfinite(ours)
    if math.isinf(right):
        return not math.isfinite(ours)
    return math.isfinite(ours) and abs(ours - right) <= tolerance * (1 + abs(right))


__all__ = ["LOSSES", "SIMPLE", "TOLERANCE", "Truth", "agree", "oracle", "truth"]
