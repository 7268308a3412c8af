"""The record of a run: what its loss is, from the plan that was attached; how it was computed, from what was seen."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from dft_plugin import __version__
from dft_plugin.config import record as records
from dft_plugin.config.record import FORMAT, Record, ranges
from dft_plugin.core.plan import LossPlan
from dft_plugin.hf import card
from dft_plugin.hf.attachment import Attachment
from dft_plugin.hf.computing import computed
from dft_plugin.objectives import Objective
from dft_plugin.objectives.schedule import Schedule

WRITTEN_BY = f"dft-plugin {__version__}"


def record_of(attachment: Attachment, host: Mapping[str, Any]) -> Record:
    """Return the record of a loss that nothing was trained with yet.

    Args:
        attachment: on the model.
        host: name and version of the framework, and the name of its trainer.
    """
    return record_of_plan(attachment.plan, host, attachment.reference.word if attachment.reference else None)


def record_of_plan(plan: LossPlan, host: Mapping[str, Any], reference: str | None = None) -> Record:
    """Return the record of a loss that is attached to no model: somebody else makes the numbers that it weighs.

    Args:
        plan: its words for tokens turned into ids.
        host: as in `record_of`.
        reference: the model that it is compared with, where the plan does not say.
    """
    return {
        "format": FORMAT,
        "written_by": WRITTEN_BY,
        "in_words": plan.describe(),
        "loss": _loss_of(plan, reference),
        "formula": plan.objective.summary,
        "source": plan.objective.source,
        "tokens": _tokens(plan),
        "host": dict(host),
        "versions": {name: _version(name) for name in ("torch", "transformers", "peft", "accelerate")},
        "step": 0,
        "max_steps": None,
        "computed": [],
        "before": [],
    }


def grown(record: Record, attachment: Attachment, step: int, max_steps: int | None) -> Record:
    """Return a record of a run that has gone on: how far it is, and how it is computed where that is not as it was.

    Args:
        record: so far.
        attachment: on the model.
        step: steps that were done.
        max_steps: how many there will be; None: nobody knows.
    """
    return further(record, computed(attachment), step, max_steps)


def further(record: Record, found: Mapping[str, str], step: int, max_steps: int | None) -> Record:
    """Return a record of a run that has gone on, as `grown`; `found` says how it is computed, empty where not yet."""
    passes = record["computed"]
    last = {key: value for key, value in passes[-1].items() if key != "from_step"} if passes else {}
    if found and found != last:
        passes = [*passes, {"from_step": max(step, 1), **found}]
    return {**record, "step": step, "max_steps": max_steps, "computed": passes}


def _loss_of(plan: LossPlan, reference: str | None) -> dict[str, Any]:
    """Return what may be written after `loss:` for the same loss, each option of the objective with its value."""
    schedule = plan.schedule or Schedule(plan.objective)
    options = _options(plan.objective)
    for name, ramp in schedule.ramps.items():
        options[name] = {"from": ramp.start, "to": ramp.end, "until": ramp.until.point}
    loss: dict[str, Any] = {"name": plan.objective.name, **options}
    if schedule.first is not None:
        first = schedule.first
        loss["first"] = {"name": first.name, **_options(first), "for": schedule.first_until.point}
    rules = plan.rules
    if rules.always:
        loss["always_learn"] = list(rules.always)
    weights = {"column": rules.column, "tokens": [list(pair) for pair in rules.factors.items()]}
    if given := {key: value for key, value in weights.items() if value}:
        loss["weights"] = given
    if plan.refers or plan.reference is not None:
        loss["reference"] = plan.reference or reference
    loss["kernel"] = plan.kernel.__name__ if plan.path == "lean" else plan.path
    if plan.scratch_bytes is not None:
        loss["scratch_mb"] = plan.scratch_bytes >> 20
    if plan.extra:
        loss["log"] = list(plan.extra)
    return loss


def _options(objective: Objective) -> dict[str, Any]:
    """Return the options, but for those that the others leave without effect: they may not be written beside these."""
    idle = {key for key, (other, values) in objective.without_effect.items() if getattr(objective, other) in values}
    return objective.model_dump(mode="json", exclude=idle)


def keep(record: Record, folders: Iterable[str | os.PathLike[str]]) -> None:
    """Write a record into those folders that are there, and complete their cards."""
    for folder in folders:
        if Path(folder).is_dir():
            records.write(folder, record)
            card.complete(Path(folder), record)


def flat(record: Record) -> dict[str, Any]:
    """Return the loss for a tracker's table of settings: `dft_loss` in words, `dft_loss_alpha` and so on.

    No slash and no dot: to MLflow the one is a folder, to W&B the other is one.
    """
    nested = {f"dft_loss_{key}": value for key, value in record["loss"].items()}
    plain = {key: value if isinstance(value, (str, int, float)) else _text(value) for key, value in nested.items()}
    return {"dft_loss": record["in_words"], **plain}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _tokens(plan: LossPlan) -> dict[str, Any]:
    """Say what the words of `always_learn` and `weights` came to, as ids of this run's tokenizer."""
    if plan.adjusted is None:
        return {}
    always = ranges(plan.adjusted.always)
    factors = {str(number): factor for number, factor in sorted(plan.adjusted.factors.items())}
    return {**({"always_learned": always} if always else {}), **({"factors": factors} if factors else {})}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
