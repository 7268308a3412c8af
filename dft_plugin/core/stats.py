"""LossStats: what a run should know about its loss, as raw sums that can be merged and reduced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dft_plugin.core.statistics import LOW_WEIGHT, STATISTICS, Sum

__all__ = ["LOW_WEIGHT", "LossStats", "Sum", "Tally"]


@dataclass(frozen=True)
class LossStats:
    """Sums over target tokens, on the device of the loss. Nothing is divided before it is logged.

    Attributes:
        sums_K: one entry for each member of `Sum`: tokens are counts, LOSS and NLL are in nats.
            float64, or float32 where the device has no float64.
    """

    sums_K: Tensor

    @classmethod
    def zero(cls, device: torch.device | str = "cpu") -> LossStats:
        """Statistics of no tokens at all."""
        return cls(torch.zeros(len(Sum), dtype=_sum_dtype(torch.device(device)), device=device))

    @classmethod
    def of_tokens(
        cls, logp_T: Tensor, weight_T: Tensor, targets_T: Tensor, eos_token_ids: tuple[int, ...] = ()
    ) -> LossStats:
        """Sum up T scored tokens.

        Args:
            logp_T: log-probabilities of the targets, in nats, detached.
            weight_T: weights of the objective, detached.
            targets_T: token ids.
            eos_token_ids: the ids that end a sequence; their probability is summed apart.
        """
        dtype = _sum_dtype(logp_T.device)
        logp_T, weight_T = logp_T.to(dtype), weight_T.to(dtype)
        p_T = logp_T.exp()
        eos_T = torch.zeros_like(p_T)
        for token_id in eos_token_ids:
            eos_T = eos_T + (targets_T == token_id)
        # A weight of zero means "not learned", also where log p is -inf.
        loss_T = torch.where(weight_T == 0, torch.zeros_like(logp_T), -weight_T * logp_T)
        columns: dict[Sum, Tensor] = {
            Sum.TOKENS: torch.ones_like(p_T),
            Sum.LOSS: loss_T,
            Sum.NLL: -logp_T,
            Sum.PROB: p_T,
            Sum.WEIGHT: weight_T,
            Sum.WEIGHT_SQUARED: weight_T.square(),
            Sum.LOW_WEIGHT_TOKENS: (weight_T < LOW_WEIGHT).to(dtype),
            Sum.EOS_TOKENS: eos_T,
            Sum.EOS_PROB: eos_T * p_T,
        }
        return cls(torch.stack([columns[key].sum() for key in Sum]))

    def __add__(self, other: LossStats) -> LossStats:
        """Merge the statistics of two sets of tokens."""
        return LossStats(self.sums_K + other.sums_K.to(self.sums_K.device))

    def reduce(self, all_sum: Callable[[Tensor], Tensor]) -> LossStats:
        """Sum over ranks with `all_sum`, e.g. `accelerator.reduce`; every rank must call it."""
        return LossStats(all_sum(self.sums_K))

    def as_logs(self, prefix: str = "") -> dict[str, float]:
        """Divide, once, into what is logged. Empty if no token was scored. Syncs with the device.

        Args:
            prefix: put before each key, e.g. `eval_`.

        Returns:
            `dft/loss`, `dft/nll` (nats per token), `dft/perplexity`, `dft/mean_prob`,
            `dft/mean_weight`, `dft/effective_tokens` ((sum w)^2 / sum w^2), `dft/tokens`,
            `dft/low_weight_share`, and `dft/eos_prob` where an EOS was a target.
        """
        sums = dict(zip(Sum, self.sums_K.tolist(), strict=True))
        if not sums[Sum.TOKENS]:
            return {}
        values = ((statistic.key, statistic.divide(sums)) for statistic in STATISTICS)
        return {prefix + key: value for key, value in values if value is not None}


class Tally:
    """Statistics of one pass over data (a training, an evaluation, a prediction), begun empty."""

    def __init__(self) -> None:
        self._total: LossStats | None = None

    def add(self, stats: LossStats) -> None:
        """Add the statistics of some tokens."""
        self._total = stats if self._total is None else self._total + stats

    def take(self, device: torch.device | str = "cpu") -> LossStats:
        """Return what was added since the last time, and forget it."""
        total, self._total = self._total, None
        return LossStats.zero(device) if total is None else total


def _sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
