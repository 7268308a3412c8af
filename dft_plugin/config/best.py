"""Which checkpoint is best: the direction of each statistic, and what a choice by the loss means. No torch."""

from __future__ import annotations

import re

from dft_plugin.core.statistics import DIRECTIONS


def statistic(metric: str) -> str | None:
    """Return `dft/nll` for `dft/nll`, `eval_dft/nll` and `eval_SET_dft/nll`; None for a metric that is not ours."""
    found = re.fullmatch(r"(?:.*_)?(dft/\w+)", metric)
    return found.group(1) if found else None


def greater_is_better(metric: str) -> bool | None:
    """Return what transformers' argument of that name has to be; None: not ours, or of no direction."""
    direction = DIRECTIONS.get(statistic(metric) or "")
    return None if direction is None else direction == "higher"


def advice(metric: str | None, asked: bool | None, *, weighted: bool) -> tuple[list[str], list[str]]:
    """Say what is wrong with a choice of the best checkpoint, and what it means.

    Args:
        metric: what stands after `metric_for_best_model`; None: the host goes by the evaluation's loss.
        asked: what the user wrote after `greater_is_better`; None: nothing.
        weighted: whether the loss weighs tokens, as every loss but `nll` does.

    Returns:
        Problems, which refuse a run; hints, which do not.
    """
    metric = metric or "loss"
    key = statistic(metric)
    prefix = _prefix(metric)
    hints = []
    if weighted and (key == "dft/loss" or re.fullmatch(r"(.*_)?loss", metric)):
        hints.append(
            "the best checkpoint (or the end of training, or the learning rate) is chosen by "
            f"{_of_evaluation(metric)}, the weighted loss. A token's -p log p rises with p below p = 1/e, so this "
            "loss can rise while the model improves. To go by the likelihood: "
            f"`metric_for_best_model: {prefix}dft/nll` and `greater_is_better: false`."
        )
    if key is None:
        return [], hints
    direction = DIRECTIONS.get(key)
    if direction is None:
        why = "has no better or worse" if key in DIRECTIONS else "is not a statistic of ours"
        usable = ", ".join(f"`{prefix}{name}`" for name, better in DIRECTIONS.items() if better)
        return [
            f"`metric_for_best_model: {metric}` {why}, so it cannot choose a checkpoint. Use `{prefix}dft/nll` with "
            f"`greater_is_better: false`, or one of {usable}."
        ], hints
    if asked is not None and asked != (direction == "higher"):
        return [
            f"`greater_is_better: {str(asked).lower()}`: for `metric_for_best_model: {metric}`, {direction} is "
            f"better. Set `greater_is_better: {str(not asked).lower()}`."
        ], hints
    return [], hints


def _prefix(metric: str) -> str:
    """Return what stands before the keys of the held-out set that `metric` is of: `eval_`, `eval_SET_`."""
    found = re.fullmatch(r"(.*_)?(?:dft/\w+|loss)", metric)
    return _of_evaluation(found.group(1) or "") if found else "eval_"


def _of_evaluation(metric: str) -> str:
    return metric if metric.startswith("eval_") else f"eval_{metric}"
