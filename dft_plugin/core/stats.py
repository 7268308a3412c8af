"""LossStats: what a run should know about its loss, as raw sums that can be merged and reduced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dft_plugin.core.bands import BANDS, count_by_band
from dft_plugin.core.statistics import LOW_WEIGHT, STATISTICS, Sum
from dft_plugin.kernels import KernelResult
from dft_plugin.objectives import Divisor

__all__ = ["LOW_WEIGHT", "LossStats", "Sum", "Tally", "added_to_divisor"]


def added_to_divisor(divisor: Divisor, weight_T: Tensor) -> Tensor:
    """Return what each token adds to what the sum of the losses is divided by, [T].

    Args:
        divisor: 1 for each token, its weight, or 1 for each that has a weight.
        weight_T: weights, of any float dtype; the result has it, too.
    """
    if divisor == "weights":
        return weight_T
    return torch.ones_like(weight_T) if divisor == "tokens" else (weight_T != 0).to(weight_T)


@dataclass(frozen=True)
class LossStats:
    """Sums over target tokens, on the device of the loss. Nothing is divided before it is logged.

    Attributes:
        sums_K: one entry for each member of `Sum` (tokens are counts, LOSS and NLL are in nats), then two for each
            name: the sum of its values, and how many tokens have one. float64, or float32 where the device has none.
        names: values of the objective, logged as means.
        counts_K: how many tokens are in each band of probability (`core.bands`), of the same dtype; None: not counted.
    """

    sums_K: Tensor
    names: tuple[str, ...] = ()
    counts_K: Tensor | None = None

    @classmethod
    def zero(cls, device: torch.device | str = "cpu", names: tuple[str, ...] = ()) -> LossStats:
        """Statistics of no tokens at all."""
        entries = len(Sum) + 2 * len(names)
        zeros = torch.zeros(entries + BANDS, dtype=_sum_dtype(torch.device(device)), device=device)
        return cls(zeros[:entries], names, zeros[entries:])

    @classmethod
    def of_tokens(
        cls,
        scored: KernelResult,
        ids_T: Tensor,
        eos_token_ids: tuple[int, ...] = (),
        names: tuple[str, ...] | None = None,
        divisor: Divisor = "tokens",
    ) -> LossStats:
        """Sum up T scored tokens.

        Args:
            scored: log-probabilities, weights, losses, and values of the objective.
            ids_T: token ids.
            eos_token_ids: the ids that end a sequence; their probability is summed apart.
            names: values of the objective to sum, those of a whole run; None: all that were scored.
            divisor: what the objective divides by.
        """
        names = tuple(scored.statistics) if names is None else names
        dtype = _sum_dtype(ids_T.device)
        logp_T, weight_T = scored.rows.logp_T.to(dtype), scored.weight_T.to(dtype)
        p_T = logp_T.exp()
        eos_T = torch.zeros_like(p_T)
        for token_id in eos_token_ids:
            eos_T = eos_T + (ids_T == token_id)
        columns: dict[Sum, Tensor] = {
            Sum.TOKENS: torch.ones_like(p_T),
            Sum.LOSS: scored.loss_T.to(dtype),
            Sum.NLL: -logp_T,
            Sum.PROB: p_T,
            Sum.WEIGHT: weight_T,
            Sum.WEIGHT_SQUARED: weight_T.square(),
            Sum.LOW_WEIGHT_TOKENS: (weight_T < LOW_WEIGHT).to(dtype),
            Sum.EOS_TOKENS: eos_T,
            Sum.EOS_PROB: eos_T * p_T,
            Sum.DIVISOR: added_to_divisor(divisor, weight_T),
        }
        terms = [columns[key] for key in Sum]
        for name in names:
            value_T = scored.statistics.get(name, torch.full_like(scored.loss_T, torch.nan))
            there_T = ~value_T.isnan()
            terms += [torch.where(there_T, value_T, torch.zeros_like(value_T)).to(dtype), there_T.to(dtype)]
        return cls(torch.stack([term.sum() for term in terms]), names, count_by_band(p_T))

    def __add__(self, other: LossStats) -> LossStats:
        """Merge the statistics of two sets of tokens, scored by one objective."""
        counts_K, device = None, self.sums_K.device
        if self.counts_K is not None and other.counts_K is not None:
            counts_K = self.counts_K + other.counts_K.to(device)
        return replace(self, sums_K=self.sums_K + other.sums_K.to(device), counts_K=counts_K)

    def reduce(self, all_sum: Callable[[Tensor], Tensor]) -> LossStats:
        """Sum over ranks with `all_sum`, e.g. `accelerator.reduce`; every rank must call it."""
        return self._at_once(all_sum)

    def read(self) -> LossStats:
        """Return the same on the CPU, in one copy. Syncs with the device."""
        return self._at_once(lambda every: every.cpu())

    def _at_once(self, change: Callable[[Tensor], Tensor]) -> LossStats:
        if self.counts_K is None:
            return replace(self, sums_K=change(self.sums_K))
        every = change(torch.cat([self.sums_K, self.counts_K]))
        entries = len(self.sums_K)
        return replace(self, sums_K=every[:entries], counts_K=every[entries:])

    def as_logs(self, prefix: str = "") -> dict[str, float]:
        """Divide, once, into what is logged. Empty if no token was scored. Syncs with the device.

        Args:
            prefix: put before each key, e.g. `eval_`.

        Returns:
            `dft/loss` (as the objective divides it), `dft/nll` (nats per token), `dft/perplexity`, `dft/mean_prob`,
            `dft/mean_weight`, `dft/effective_tokens` ((sum w)^2 / sum w^2), `dft/tokens`,
            `dft/low_weight_share`, `dft/eos_prob` where an EOS was a target, and the mean of each value of the
            objective over the tokens that have one.
        """
        sums_K = self.sums_K.tolist()
        sums = dict(zip(Sum, sums_K, strict=False))
        if not sums[Sum.TOKENS]:
            return {}
        values = {statistic.key: statistic.divide(sums) for statistic in STATISTICS}
        own = sums_K[len(Sum) :]
        for name, total, count in zip(self.names, own[::2], own[1::2], strict=True):
            values[f"dft/{name}"] = total / count if count else None
        return {prefix + key: value for key, value in values.items() if value is not None}


class Tally:
    """Statistics of one pass over data (a training, an evaluation, a prediction), begun empty.

    Args:
        names: values of the objective: ranks that scored nothing must sum as many as the others.

    Attributes:
        held: what was added since it was taken last; None: nothing.
    """

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self._names = names
        self.held: LossStats | None = None

    def add(self, stats: LossStats) -> None:
        """Add the statistics of some tokens."""
        self.held = stats if self.held is None else self.held + stats

    def take(self, device: torch.device | str = "cpu") -> LossStats:
        """Return what was added since the last time, and forget it."""
        total, self.held = self.held, None
        return LossStats.zero(device, self._names) if total is None else total


def _sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
