"""What the first statistics of a run say of a training that will not go well."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from dft_plugin.hf import best
from dft_plugin.objectives import Objective

logger = logging.getLogger(__name__)

WEAK_PRIOR = 0.1
"""Mean target probability below which plain likelihood tends to train better (arXiv 2510.00526)."""


def warn(logs: Mapping[str, float], objective: Objective) -> bool:
    """Warn where nothing is learned, or where plain likelihood tends to train better.

    Args:
        logs: the statistics, empty where there was no target at all.
        objective: the one that holds.

    Returns:
        Whether all has been said: what is plain likelihood now may be another objective later.
    """
    if not logs:
        logger.warning(
            "dft: there was no target token so far: every label is -100, and nothing is learned. Look at the chat "
            "template, at what is masked, and at the length at which rows are cut."
        )
        return True
    anchored = objective.reference == "distribution" and not objective.replaces_target
    if not logs["dft/mean_weight"] and not anchored:
        logger.warning(
            "dft: no token has had a weight above 0 so far: nothing is trained by %s. Change its options, or take "
            "`loss: nll`.",
            objective.name,
        )
        return True
    if not best.weighs(objective):
        return False
    if logs["dft/mean_prob"] < WEAK_PRIOR:
        logger.warning(
            "dft: the targets' mean probability is %.3f in the first steps. Below %s the model's prior is "
            "weak, and plain SFT (`loss: nll`) often trains better. See docs/when-not-to-use.md.",
            logs["dft/mean_prob"],
            WEAK_PRIOR,
        )
    return True
