"""What a caller gave as a loss, an objective or a name, as a LossPlan."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from dft_plugin.config.plugins import Catalogue, build_catalogue
from dft_plugin.core.plan import COLUMNS, LossPlan
from dft_plugin.core.targets import Facts
from dft_plugin.errors import SettingsError
from dft_plugin.objectives import Objective
from dft_plugin.objectives.declared import require_declared

LossLike = str | Mapping[str, Any] | Objective
"""A name (`"dft"`), a mapping as in YAML (`{"name": "dft", "alpha": 0.7}`), or an Objective."""


@cache
def _installed() -> Catalogue:
    """Read the catalogue once per process: a training loop asks in every step."""
    return build_catalogue()


def plan_without_tokenizer(
    objective: LossLike, facts: Facts | None, vocab_size: int = sys.maxsize, heeds: Collection[str] = ()
) -> LossPlan:
    """Resolve an objective for a function, which gets no tokenizer.

    Args:
        objective: as a caller passed it.
        facts: columns of the data that the caller passed.
        vocab_size: logits of a position, where that is known by now.
        heeds: which of the settings besides the objective's own take effect in the function.

    Raises:
        SettingsError: it names tokens by words or beyond the vocabulary, reads a column that is not there, or sets
            what has no effect in the function.
    """
    plan = plan_for(objective, _installed(), where="objective")
    problems = [
        f"`objective` names tokens by a word ({word!r}), and this function has no tokenizer to turn it into ids. Give "
        "ids in its place: `always_learn: [tokenizer.eos_token_id]`, or `weights: {tokens: {ID: 2.0}}`."
        for word in plan.rules.words
    ]
    problems += [
        f"`objective` sets `{key}`, which has no effect in this function{why}. Drop it."
        for key, why in _without_effect(plan, heeds).items()
    ]
    problems += _beyond(plan, vocab_size)
    # Nobody runs a reference here.
    columns = plan.columns | plan.filled | ({plan.rules.column} if plan.rules.column else set())
    carried = set() if facts is None else facts.columns.keys()
    problems += [
        f"`objective` reads `{name}`, which this function was not given. Give it one number for each label: "
        f"`facts=dft_plugin.Facts(columns={{{name!r}: tensor}})`."
        for name in sorted(columns - carried)
    ]
    if problems:
        raise SettingsError(problems)
    return plan


def require_ids(plan: LossPlan, vocab_size: int) -> None:
    """Refuse a plan that names tokens beyond the vocabulary.

    Raises:
        SettingsError: with each of them.
    """
    problems = _beyond(plan, vocab_size)
    if problems:
        raise SettingsError(problems)


def _beyond(plan: LossPlan, vocab_size: int) -> list[str]:
    return [
        f"`objective` names the token {number}, and there are {vocab_size} logits (allowed: 0 to {vocab_size - 1})."
        for number in sorted({*plan.rules.ids, *plan.rules.factors_by_id})
        if number >= vocab_size
    ]


def _without_effect(plan: LossPlan, heeds: Collection[str]) -> dict[str, str]:
    """Return which settings were given that a function cannot heed, and why."""
    was_given = {
        "kernel": plan.path == "logits" or (plan.path != "auto" and "kernel" not in heeds),
        "scratch_mb": plan.scratch_bytes is not None and "scratch_mb" not in heeds,
        "reference": plan.reference not in (None, COLUMNS),
        "log": bool(plan.extra),
        "resume": plan.resume != "same",
        "nonfinite": plan.nonfinite != "warn",
    }
    reasons = {
        "reference": ": it takes what a reference says in columns (`facts=`)",
        "log": ": it writes none",
        "resume": ": it loads no checkpoint",
        "nonfinite": ": it knows no step. Look at `loss.isfinite()` yourself",
    }
    return {key: reasons.get(key, "") for key, is_given in was_given.items() if is_given}


def plan_for(loss: LossLike, catalogue: Catalogue | None = None, where: str = "loss") -> LossPlan:
    """Resolve what a caller of the library passed as `objective` or `loss`, whichever `where` says.

    Raises:
        SettingsError: it is none, or an option of it is wrong.
    """
    catalogue = catalogue or build_catalogue()
    if isinstance(loss, Objective):
        require_declared(loss)
        default = catalogue.plan(catalogue.settings("nll"))
        return replace(default, objective=loss)
    _refuse_callable(loss, where)
    return catalogue.plan(catalogue.settings(loss, where))


def _refuse_callable(loss: Any, where: str) -> None:
    if callable(loss):
        named = getattr(loss, "__name__", type(loss).__name__)
        made = isinstance(loss, type) and issubclass(loss, Objective)
        how = f"`{where}={named}()`" if made else "a subclass of `dft_plugin.Objective`, made: `MyObjective()`"
        raise SettingsError(
            [f"`{where}` is {named}, which is no objective. Give {how}, or a name or mapping as in YAML: `'dft'`."]
        )
