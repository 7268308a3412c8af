"""What the first statistics of a run say of a training that will not go well."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from dft_plugin.core.plan import LossPlan
from dft_plugin.hf import best
from dft_plugin.objectives import Clock
from dft_plugin.saying import warn as warn_above

logger = logging.getLogger(__name__)

WEAK_PRIOR = 0.1
"""Mean target probability below which plain likelihood tends to train better (arXiv 2510.00526)."""

LOOK = (
    "`dft probe CONFIG` (or --model and --data in the place of a config) shows which targets these are and which loss "
    "fits. A low probability may also come from a wrong chat template or mask."
)
"""How to find out, before hours are spent."""


def warn(logs: Mapping[str, float], plan: LossPlan, clock: Clock | None) -> bool:
    """Warn where nothing is learned, or where plain likelihood tends to train better.

    Args:
        logs: the statistics since the last log, empty where there was no target at all.
        plan: of the run.
        clock: how far the run was in its last step; None where nobody knows.

    Returns:
        Whether all has been said: what is plain likelihood now may be another objective later.
    """
    objective = plan.holding(clock)
    when = "so far" if clock is None else f"in the steps up to {clock.step + 1}"
    if not logs:
        warn_above(
            logger,
            "dft: there was no target token %s: every label is -100, and nothing is learned. Look at the chat "
            "template, at what is masked, and at the length at which rows are cut.",
            when,
        )
        return True
    anchored = objective.reference == "distribution" and not objective.replaces_target
    if not logs["dft/mean_weight"] and not anchored:
        warn_above(
            logger,
            "dft: no token has had a weight above 0 %s: nothing is trained by %s. Change its options, or take "
            "`loss: nll`.",
            when,
            objective.name,
        )
        return True
    if not best.weighs(objective):
        return False
    if logs["dft/mean_prob"] < WEAK_PRIOR:
        warn_above(
            logger,
            "dft: the targets' mean probability is %.3f %s. Below %s the model's prior is weak, and plain SFT often "
            "trains better (arXiv 2510.00526): %s. %s",
            logs["dft/mean_prob"],
            when,
            WEAK_PRIOR,
            _instead(plan),
            LOOK,
        )
    return True


def _instead(plan: LossPlan) -> str:
    """Say what to write, given what is written."""
    first = None if plan.schedule is None else plan.schedule.first
    if first is None:
        return "take `loss: nll`, or begin with it (`first: {name: nll, for: 0.3}` in the mapping of `loss:`)"
    if best.weighs(first):
        return "take `loss: nll`"
    return f"let `first: {{name: {first.name}}}` hold for longer, or take `loss: nll`"
