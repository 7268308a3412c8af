"""A loss that is not a finite number in a loop of one's own, which no hook guards."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dft_plugin.core.plan import LossPlan
from dft_plugin.core.stats import LossStats
from dft_plugin.errors import NonFiniteError
from dft_plugin.saying import warn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drained(LossStats):
    """Statistics that warn where they are logged and are not finite.

    Attributes:
        said: gets what was said, so that it is said once; None: nothing is to be said.
    """

    said: set[str] | None = None

    @classmethod
    def of(cls, stats: LossStats, said: set[str] | None) -> Drained:
        """Make one of statistics."""
        return cls(stats.sums_K, stats.names, stats.counts_K, said)

    def as_logs(self, prefix: str = "") -> dict[str, float]:
        """Divide, as those that were drained would, and warn."""
        logs = super().as_logs(prefix)
        if self.said is not None:
            say(logs, self.said)
        return logs


def say(logs: Mapping[str, float], said: set[str], when: str = "since they were taken last") -> None:
    """Warn, once, of statistics that are not finite.

    Args:
        logs: by key.
        said: gets what was said.
        when: which steps they are of, in words.
    """
    bad = [key for key, value in logs.items() if not math.isfinite(value)]
    # A perplexity that is too large for a number is no fault of a loss.
    if said or not [key for key in bad if not key.endswith("dft/perplexity")]:
        return
    said.update(bad)
    warn(
        logger,
        "dft: %s: not finite, %s. Weights that such a step has moved are not finite either. In a trainer, and after "
        "`attach`, `nonfinite: error` in the mapping of the loss stops at the first such step.",
        ", ".join(bad),
        when,
    )


def require_in_loop(attachment: Any, loss: Tensor, logp_T: Tensor) -> None:
    """Stop a training pass of somebody's own loop that is not finite, where that was asked for; waits for it.

    Args:
        attachment: whose pass it is.
        loss: what goes backward: a scalar.
        logp_T: of the targets. A weight of 0 hides a NaN of it from the loss, and not from the gradients.

    Raises:
        NonFiniteError: it is not.
    """
    plan: LossPlan = attachment.plan
    if plan.nonfinite != "error" or attachment.trainer_only or not loss.requires_grad:
        return
    if not bool(loss.detach().isfinite().all() & logp_T.detach().isnan().any().logical_not().to(loss.device)):
        clock = attachment.clock
        step = "" if clock is None else f" in step {clock.step + 1}"
        raise NonFiniteError(
            f"dft: the loss is not a finite number{step} (`nonfinite: error`), in labelled pass {attachment.calls} of "
            "this attachment. Nothing was changed by it. Look at the batch that the model was given. Other ranks know "
            "nothing of it: have the launcher end them (torchrun does when this process fails)."
        )


def problems(plan: LossPlan) -> list[str]:
    """List what `attach` cannot do, with what to do."""
    if plan.nonfinite != "skip":
        return []
    return [
        "`nonfinite: skip`: attach knows neither your optimizer nor your other ranks. Leave the step out yourself "
        "where `loss.isfinite()` is false, on all ranks alike; or write `nonfinite: error`; in a trainer use "
        "activate(trainer)."
    ]
