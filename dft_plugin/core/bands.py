"""Tokens by the probability that a model gives them: how many there are, and how much each loss moves them.

Shapes: T tokens, K bands, J objectives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dft_plugin.core.transfer import send

EDGES = (0.0, 0.001, 0.01, *(round(0.05 * step, 2) for step in range(1, 20)), 0.99, 1.0)
"""Ends of the bands of p: every twentieth, finer at both ends, where the losses differ most."""

BANDS = len(EDGES) - 1


def band_of(p_T: Tensor) -> Tensor:
    """Return the band of each probability, int64 [T]; a band holds its lower end, the last one both."""
    inner = torch.tensor(EDGES[1:-1], dtype=p_T.dtype, device=p_T.device)
    return torch.bucketize(p_T, inner, right=True)


def count_by_band(p_T: Tensor) -> Tensor:
    """Return how many of the probabilities are in each band, [K] of their dtype; one that is NaN is in none.

    The device is not waited for, and nobody adds to one place at once: the same tokens give the same numbers.
    """
    lower_K = send(torch.tensor(EDGES[:-1], dtype=p_T.dtype, device="cpu"), p_T.device)
    reached_K = (p_T[:, None] >= lower_K).sum(0, dtype=p_T.dtype)
    return reached_K - torch.nn.functional.pad(reached_K[1:], (0, 1))


@dataclass
class Bands:
    """Sums over tokens, by band: of a size that does not grow with them.

    Attributes:
        tokens_K: how many, float64 on the CPU; so are the others.
        prob_K: sum of p.
        nll_K: sum of -log p, in nats.
        weight_K: for each objective the sum of its weights.
        gradient_K: for each objective the sum of |w| (1 - p), the size of the gradient on the target's logit.
        squared: for each objective the sum of squared weights.
    """

    tokens_K: Tensor = field(default_factory=lambda: _zeros())
    prob_K: Tensor = field(default_factory=lambda: _zeros())
    nll_K: Tensor = field(default_factory=lambda: _zeros())
    weight_K: dict[str, Tensor] = field(default_factory=dict)
    gradient_K: dict[str, Tensor] = field(default_factory=dict)
    squared: dict[str, float] = field(default_factory=dict)

    def add(self, logp_T: Tensor, one_minus_p_T: Tensor, weights: Mapping[str, Tensor]) -> None:
        """Add T tokens.

        Args:
            logp_T: log-probabilities of the targets, in nats.
            one_minus_p_T: 1 - p, without cancellation.
            weights: w_T by the name of the objective.
        """
        p_T = logp_T.exp()
        band_T = band_of(p_T).cpu()
        self.tokens_K += _by_band(band_T, torch.ones_like(p_T))
        self.prob_K += _by_band(band_T, p_T)
        self.nll_K += _by_band(band_T, -logp_T)
        for name, weight_T in weights.items():
            size_T = weight_T.abs() * one_minus_p_T
            self.weight_K[name] = self.weight_K.get(name, 0.0) + _by_band(band_T, weight_T)
            self.gradient_K[name] = self.gradient_K.get(name, 0.0) + _by_band(band_T, size_T)
            self.squared[name] = self.squared.get(name, 0.0) + float(weight_T.double().square().sum())

    @property
    def tokens(self) -> int:
        """How many tokens there were."""
        return int(self.tokens_K.sum())

    def effective_tokens(self, name: str) -> float:
        """Return (sum w)^2 / sum w^2 of an objective."""
        total = float(self.weight_K[name].sum())
        return total**2 / self.squared[name] if self.squared[name] else 0.0


def _zeros() -> Tensor:
    return torch.zeros(BANDS, dtype=torch.float64)


def _by_band(band_T: Tensor, values_T: Tensor) -> Tensor:
    return _zeros().index_add_(0, band_T, values_T.double().cpu())
