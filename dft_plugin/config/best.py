"""Which checkpoint is best: the direction of each statistic, and what a choice by the loss means. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

DIRECTIONS: Mapping[str, str] = {
    "dft/loss": "lower",
    "dft/nll": "lower",
    "dft/perplexity": "lower",
    "dft/mean_prob": "higher",
}
"""`lower` or `higher` is better; a statistic that is not here cannot choose a checkpoint."""


def statistic(metric: str) -> str | None:
    """Return `dft/nll` for `dft/nll`, `eval_dft/nll` and `eval_SET_dft/nll`; None for a metric that is not ours."""
    found = re.fullmatch(r"(?:.*_)?(dft/\w+)", metric)
    return found.group(1) if found else None


def advice(metric: str | None, greater_is_better: bool | None, *, weighted: bool) -> tuple[list[str], list[str]]:
    """Say what is wrong with a choice of the best checkpoint, and what it means.

    Args:
        metric: what stands after `metric_for_best_model`; None: the host goes by the evaluation's loss.
        greater_is_better: what the user wrote; None: nothing.
        weighted: whether the loss weighs tokens, as every loss but `nll` does.

    Returns:
        Problems, which refuse a run; hints, which do not.
    """
    metric = metric or "loss"
    key = statistic(metric)
    hints = []
    if weighted and (key == "dft/loss" or re.fullmatch(r"(.*_)?loss", metric)):
        hints.append(
            "the best checkpoint (or the end of training, or the learning rate) is chosen by "
            f"{_of_evaluation(metric)}, the weighted loss. A token's -p log p rises with p below p = 1/e, so this "
            "loss can rise while the model improves. To go by the likelihood: "
            "`metric_for_best_model: eval_dft/nll` and `greater_is_better: false`."
        )
    if key is None:
        return [], hints
    direction = DIRECTIONS.get(key)
    if direction is None:
        return [
            f"`metric_for_best_model: {metric}` has no better or worse, so it cannot choose a checkpoint. Use "
            "`eval_dft/nll` with `greater_is_better: false`, or one of "
            f"{', '.join(f'`eval_{name}`' for name in DIRECTIONS)}."
        ], hints
    if greater_is_better is not None and greater_is_better != (direction == "higher"):
        right = str(direction == "higher").lower()
        return [
            f"`greater_is_better: {str(greater_is_better).lower()}`: for `metric_for_best_model: {metric}`, "
            f"{direction} is better. Set `greater_is_better: {right}`."
        ], hints
    return [], hints


def _of_evaluation(metric: str) -> str:
    return metric if metric.startswith("eval_") else f"eval_{metric}"
