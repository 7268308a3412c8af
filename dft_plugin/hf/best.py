"""Which checkpoint a trainer takes for the best: its arguments are set by what its metric is, not by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import EarlyStoppingCallback, optimization

from dft_plugin.config import best
from dft_plugin.config.hosts import PLATEAU_SCHEDULERS
from dft_plugin.core.plan import LossPlan
from dft_plugin.objectives import Clock, Objective, Rows

Change = Callable[[Any, str, Any], None]
"""Sets an attribute until the attachment is detached: owner, name, value."""


def problems(trainer: Any) -> list[str]:
    """List what is wrong with the trainer's choice, each with what to change."""
    if not _chooses(trainer):
        return []
    args = trainer.args
    wrong, _ = best.advice(args.metric_for_best_model, _asked(args), weighted=False)
    return [*wrong, *_wrong_mode(trainer)]


def prefer(trainer: Any, change: Change) -> list[str]:
    """Have the trainer, early stopping and the scheduler go the right way for a metric of ours.

    Args:
        trainer: that is to be trained.
        change: sets an attribute so that it can be undone.

    Returns:
        What was changed, in words, for the start-up line.
    """
    args = trainer.args
    right = best.greater_is_better(args.metric_for_best_model or "") if _chooses(trainer) else None
    if right is None:
        return []
    replaced = []
    if args.greater_is_better != right:
        change(args, "greater_is_better", right)
        replaced.append(f"greater_is_better (the lowest {args.metric_for_best_model} is the best)")
    if right and _follows_plateaus(args) and _mode_asked(args) is None:
        change(args, "lr_scheduler_kwargs", {**(args.lr_scheduler_kwargs or {}), "mode": "max"})
        replaced.append(f"the scheduler's mode (the highest {args.metric_for_best_model} is the best)")
    return replaced


def hints(trainer: Any, plan: LossPlan) -> list[str]:
    """Say what it means to choose by the loss, where that weighs tokens."""
    # ms-swift names a metric whether anybody evaluates or not.
    if not _chooses(trainer) or _value(trainer.args.eval_strategy) == "no":
        return []
    _, meaning = best.advice(trainer.args.metric_for_best_model, None, weighted=_weighs_ever(plan))
    return meaning


def _weighs_ever(plan: LossPlan) -> bool:
    """Whether tokens are weighed at the beginning of a run or at its end; between them a ramp lies between."""
    return any(weighs(one) for one in (plan.holding(Clock(0, None, 0.0)), plan.objective))


def weighs(objective: Objective) -> bool:
    """Whether an unlikely token has another weight than a likely one; no option by itself tells."""
    if objective.replaces_target:
        # What is made of a reference does not ask how likely the target is.
        return False
    if type(objective).weigh is not Objective.weigh or any(not isinstance(need, str) for need in objective.needs):
        # By more than two rows can say.
        return True
    logp_T = torch.tensor([-0.1, -3.0], dtype=torch.float64)
    p_T = logp_T.exp()
    rows = Rows(logp_T, 1 - p_T, p_T > 0.5, entropy_T=-p_T * logp_T, sum_p_squared_T=p_T.square())
    likely, unlikely = objective.weight(rows).tolist()
    return bool(likely != unlikely)


def _chooses(trainer: Any) -> bool:
    """Whether anything goes by an evaluation: the best model, early stopping or the learning rate."""
    args = trainer.args
    stops = any(isinstance(callback, EarlyStoppingCallback) for callback in trainer.callback_handler.callbacks)
    saves_best = _value(args.save_strategy) == "best"
    return bool(
        args.metric_for_best_model
        or args.load_best_model_at_end
        or saves_best
        or stops
        or _follows_plateaus(args)
        or _own_scheduler(trainer) is not None
    )


def _asked(args: Any) -> bool | None:
    """Return `greater_is_better` where it is not what transformers fills in by itself, so that somebody wrote it."""
    metric = args.metric_for_best_model
    given: bool | None = args.greater_is_better
    return None if metric is None or given == (not metric.endswith("loss")) else given


def _follows_plateaus(args: Any) -> bool:
    return _value(args.lr_scheduler_type) in PLATEAU_SCHEDULERS


def _value(word: Any) -> str:
    """Return a word of TrainingArguments, which may be one of an enumeration."""
    return str(getattr(word, "value", word))


def _own_scheduler(trainer: Any) -> Any:
    """Return the user's own scheduler if it goes by evaluations; the trainer's is made anew for each training."""
    # Since transformers 5. Other schedulers have a `mode` of another meaning.
    kinds = (ReduceLROnPlateau, getattr(optimization, "GreedyLR", ReduceLROnPlateau))
    scheduler = trainer.lr_scheduler
    made_by_trainer = getattr(trainer, "_created_lr_scheduler", False)
    return scheduler if isinstance(scheduler, kinds) and not made_by_trainer else None


def _mode_asked(args: Any) -> str | None:
    kwargs = args.lr_scheduler_kwargs
    mode: str | None = kwargs.get("mode") if isinstance(kwargs, dict) else None
    return mode


def _wrong_mode(trainer: Any) -> list[str]:
    args = trainer.args
    right = best.greater_is_better(args.metric_for_best_model or "")
    if right is None:
        return []
    own, wanted = _own_scheduler(trainer), "max" if right else "min"
    asked = own.mode if own is not None else _mode_asked(args) if _follows_plateaus(args) else None
    if asked in (None, wanted):
        return []
    remedy = (
        f"Set `lr_scheduler_kwargs: {{mode: {wanted}}}`, or leave the mode out."
        if own is None
        else f'Make the {type(own).__name__} of `optimizers` with mode="{wanted}".'
    )
    return [
        f"the learning rate follows {args.metric_for_best_model} with mode {asked}, and for it {wanted} is right. "
        f"{remedy}"
    ]
