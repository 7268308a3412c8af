"""Going on from a checkpoint: by its record with the same loss, with another one where that is allowed, or refused."""

from __future__ import annotations

import os
import sys
from typing import Any

from dft_plugin.config import record as records
from dft_plugin.config.record import Difference, Record, UnreadableRecordError
from dft_plugin.core.plan import LossPlan
from dft_plugin.errors import ConflictError

ALLOW = "`resume: allow`"

_HOW_TO_ALLOW = f"add `loss.resume=allow` to `dft train CONFIG`, or {ALLOW} to the options of `loss:`"


def go_on(now: Record, plan: LossPlan, checkpoint: str | os.PathLike[str], step: int, *, speaks: bool) -> Record:
    """Return the record of a run that goes on from a checkpoint.

    Args:
        now: the record of this run's loss.
        plan: of this run.
        checkpoint: its folder.
        step: how many steps it has done.
        speaks: whether this process writes what there is to say.

    Raises:
        ConflictError: it was trained with another loss, or nobody can know with which, and that is not allowed.
    """
    allowed = plan.resume == "allow"
    try:
        then = records.read(checkpoint)
    except UnreadableRecordError as error:
        if not allowed:
            raise ConflictError([_unreadable(checkpoint, error)]) from error
        _say(f"{error}; going on with {now['in_words']} from step {step}, as {ALLOW} says.", speaks)
        return {**now, "before": [_unknown(step)]}
    if then is None:
        _say(
            f"the checkpoint {os.fspath(checkpoint)} has no record of its loss ({records.FILE}): it was trained "
            f"without dft-plugin, or by one that wrote none. Going on with {now['in_words']} from step {step}.",
            speaks,
        )
        return {**now, "before": [_unknown(step)]}
    found = records.differences(then, now, defaults(plan))
    if not found:
        return {**now, "before": _history(then), "computed": _passes(then)}
    if not allowed:
        raise ConflictError([_another(checkpoint, then, now, found)])
    what = "; ".join(map(str, found))
    _say(f"{os.fspath(checkpoint)} was trained with {then.get('in_words')}; from step {step} on {what}.", speaks)
    part = {"until_step": step, "loss": then["loss"], "in_words": then.get("in_words"), "computed": _passes(then)}
    return {**now, "before": [*_history(then), part]}


def _another(checkpoint: str | os.PathLike[str], then: Record, now: Record, found: list[Difference]) -> str:
    return (
        f"the checkpoint {os.fspath(checkpoint)} was trained with {then.get('in_words')}, and this run would go on "
        f"with {now['in_words']}: {'; '.join(map(str, found))}. Start it with the loss of the checkpoint (its "
        f"{records.FILE} has it, as it may stand after `loss:`), begin a new run, or change it on purpose: "
        f"{_HOW_TO_ALLOW}."
    )


def _unreadable(checkpoint: str | os.PathLike[str], error: Exception) -> str:
    return (
        f"{error}. So nobody can say whether {os.fspath(checkpoint)} was trained with the loss of this run. If you "
        f"know that it was, or want to change it: {_HOW_TO_ALLOW}."
    )


def defaults(plan: LossPlan) -> dict[str, Any]:
    """Return the options of a plan's objective as they are where nobody gives them."""
    fields = type(plan.objective).model_fields
    return {name: field.get_default(call_default_factory=True) for name, field in fields.items()}


def _unknown(step: int) -> dict[str, Any]:
    return {"until_step": step, "loss": None}


def _history(then: Record) -> list[Any]:
    return list(then.get("before") or [])


def _passes(then: Record) -> list[Any]:
    return list(then.get("computed") or [])


def _say(text: str, speaks: bool) -> None:
    if speaks:
        sys.stderr.write(f"dft: {text}\n")
