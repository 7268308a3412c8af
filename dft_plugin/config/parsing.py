"""What stands after `loss:`, turned into Settings, with every problem at once. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from dft_plugin.config.plain import not_text, plain
from dft_plugin.config.schedules import RampSetting, ends, is_ramp, made, rampable, ramps
from dft_plugin.config.settings import FIRST_KEYS, OWN_KEYS, RESERVED_KERNELS, Settings
from dft_plugin.config.spelling import closest, did_you_mean
from dft_plugin.config.spoken import meant, name_as_key, no_loss
from dft_plugin.errors import SettingsError
from dft_plugin.objectives import Objective
from dft_plugin.objectives.options import WITHOUT_EFFECT, while_changing
from dft_plugin.objectives.schedule import Schedule, Until
from dft_plugin.saying import shown

Objectives = Mapping[str, type[Objective]]


def parse_settings(
    value: Any,
    *,
    objectives: Objectives,
    kernels: Collection[str],
    where: str = "loss",
) -> Settings:
    """Turn what stands after `loss:` into Settings.

    Args:
        value: a name, or a mapping with `name` (default `dft`) and options.
        objectives: what may be named, each with its options.
        kernels: what `kernel` may name beside `auto` and `logits`.
        where: the key, for error messages.

    Raises:
        SettingsError: with every problem: unknown names and keys with the closest valid one, wrong
            types, impossible values.
    """
    value = plain(value)
    if halved := not_text(value, where):
        # What else there is to say might hold them, too.
        raise SettingsError(halved)
    value = {"name": value} if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise SettingsError([no_loss(value, where, objectives)])
    problems: list[str] = []
    if mistaken := name_as_key(value, where, objectives):
        problem, value = mistaken
        problems.append(problem)
    given = {"name": "dft", **{str(key): entry for key, entry in value.items()}}
    own = {key: entry for key, entry in given.items() if key in OWN_KEYS}
    options = {key: entry for key, entry in given.items() if key not in OWN_KEYS}
    problems += _problems(Settings, own, where)
    kernel = own.get("kernel", "auto")
    if isinstance(kernel, str):
        problems += _unknown(f"{where}.kernel", kernel, [*RESERVED_KERNELS, *kernels])
    at = f"{where}.name" if len(given) > 1 else where
    problems += _objective_problems(own["name"], options, objectives, at, where, OWN_KEYS)
    if isinstance(own.get("first"), Mapping):
        problems += _first_problems(own["first"], objectives, f"{where}.first")
    if isinstance(own.get("reference"), str):
        problems += _reference_problems(own["reference"], _named(own, objectives), objectives, where)
    if problems:
        raise SettingsError(problems)
    settings = Settings(**own, options=options)
    if problems := _at_odds(settings, objectives, where):
        raise SettingsError(problems)
    return settings


def _at_odds(settings: Settings, objectives: Objectives, where: str) -> list[str]:
    """List what is right by itself, and not beside the rest."""
    objective = made(objectives[settings.name], settings.options, "to")
    every = [objective]
    problems: list[str] = []
    if settings.first is not None:
        first = objectives[settings.first.name](**settings.first.options)
        every.append(first)
        schedule = Schedule(objective, ramps(settings.options), first, Until(settings.first.until))
        # The run itself looks again, when it knows how long it is.
        problems += [f"`{where}`: {problem}" for problem in schedule.never_reached(None)]
        if type(first) is type(objective) and first.model_dump() == objective.model_dump() and not schedule.ramps:
            problems.append(
                f"`{where}.first`: `{settings.first.name}`, with the same options, is what follows, so that nothing "
                "would change. Drop it, or give another name or other options."
            )
    factors = settings.weights.tokens if settings.weights else {}
    problems += [
        f"`{where}.always_learn: {entry}` gives this token weight 1, and `{where}.weights.tokens` multiplies that by "
        "0. Drop one of them."
        for entry in settings.always_learn
        if isinstance(entry, int) and factors.get(entry) == 0
    ]
    column = settings.weights.column if settings.weights else None
    problems += [
        f"`{where}.weights.column: {column}` is what `{one.name}` reads, and no factor. Give the factors a column of "
        "another name."
        for one in every
        if column in one.columns
    ]
    return problems


def _named(own: Mapping[str, Any], objectives: Objectives) -> list[type[Objective]]:
    """Return the objectives of a run, as far as there are such."""
    first = own.get("first")
    names = [own["name"], first.get("name") if isinstance(first, Mapping) else None]
    return [objectives[name] for name in names if isinstance(name, str) and name in objectives]


def _reference_problems(reference: str, named: list[type[Objective]], objectives: Objectives, where: str) -> list[str]:
    if named and not any(one.reference != "none" for one in named):
        reading = ", ".join(name for name, kind in objectives.items() if kind.reference != "none")
        return [
            f"`{where}.reference: {reference}`: {' and '.join(f'`{one.name}`' for one in named)} compares with no "
            f"reference. Drop it. Those that do: {reading or 'none'}."
        ]
    whole = [one.name for one in named if one.reference == "distribution"]
    if whole and reference == "columns":
        return [
            f"`{where}.reference: columns`: `{whole[0]}` reads the reference's whole distribution, which columns of "
            "numbers do not hold. Allowed: base, start, copy, or the path of a model."
        ]
    return []


def _objective_problems(
    name: Any, options: Mapping[str, Any], objectives: Objectives, at: str, where: str, own_keys: Collection[str]
) -> list[str]:
    """List what is wrong with an objective's name (at `at`) and options (below `where`)."""
    if not isinstance(name, str):
        return []
    objective, problems = objectives.get(name), []
    if objective is None:
        problems = [_unknown_objective(at, name, objectives)]
        objective = objectives.get(meant(name, objectives) or "")
    if objective is None:
        return problems
    for key in options:
        if key not in objective.model_fields:
            allowed = [*objective.model_fields, *own_keys]
            problems += _unknown(f"{where}.{key}", key, allowed, what=f"an option of `{objective.name}`")
    options = {key: entry for key, entry in options.items() if key in objective.model_fields}
    malformed = []
    for key, entry in options.items():
        if is_ramp(entry) and key not in rampable(objective):
            malformed.append(_not_rampable(f"{where}.{key}", objective))
        elif is_ramp(entry):
            malformed += _problems(RampSetting, entry, f"{where}.{key}")
    checked = [ends(options, end) for end in ("from", "to")] if not malformed else [_without_ramps(options)]
    context = while_changing(set(options) - set(_without_ramps(options)))
    # What is wrong at both ends is said once.
    found = dict.fromkeys(problem for values in checked for problem in _problems(objective, values, where, context))
    return [*problems, *malformed, *found]


def _unknown_objective(at: str, name: str, objectives: Objectives) -> str:
    word = meant(name, objectives)
    hint = f" Did you mean `{word}`?" if word else ""
    return f"`{at}`: `{name}` is not a known name.{hint} Allowed: {', '.join(objectives)}."


def _not_rampable(key: str, objective: type[Objective]) -> str:
    """Say which options can be ramped, of one that cannot."""
    which = f"Options of `{objective.name}` that can: {', '.join(rampable(objective)) or 'none'}."
    return f"`{key}` cannot change during the run: a choice, a switch or a count is one value. {which}"


def _without_ramps(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry for key, entry in options.items() if not is_ramp(entry)}


def _first_problems(first: Mapping[Any, Any], objectives: Objectives, where: str) -> list[str]:
    given = {str(key): entry for key, entry in first.items()}
    options = {key: entry for key, entry in given.items() if key not in FIRST_KEYS}
    problems = _objective_problems(given.get("name"), options, objectives, f"{where}.name", where, FIRST_KEYS)
    if "name" not in given:
        meant = {key: closest(key, FIRST_KEYS) for key in options}
        problems += [f"`{where}.{key}`: is `{word}` meant?" for key, word in meant.items() if word]
    changing = [key for key in options if is_ramp(options[key])]
    return problems + [f"`{where}.{key}`: an option of `first` cannot be ramped; give a number." for key in changing]


def _problems(
    model: type[BaseModel], values: Mapping[str, Any], where: str, context: Mapping[str, Any] | None = None
) -> list[str]:
    try:
        model.model_validate(dict(values), context=context)
    except ValidationError as error:
        return [_problem(item, where, model) for item in error.errors()]
    return []


def _problem(item: Any, where: str, model: type[BaseModel]) -> str:
    key = ".".join([where, *map(str, item["loc"])])
    if item["type"] == WITHOUT_EFFECT:
        return f"`{key}`: {item['msg']}."
    if item["type"] == "missing":
        return f"`{key}` is missing beside {shown(item['input'])}."
    if item["type"] == "model_type":
        fields = ", ".join(_KEYS[item["ctx"]["class_name"]])
        return f"`{key}: {shown(item['input'])}`: a mapping is needed, with {fields}."
    said = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        allowed = _keys(model, item["loc"][:-1])
        said = f"there is no such key.{did_you_mean(item['loc'][-1], allowed)}"
        said += f" Allowed: {', '.join(allowed)}" if allowed else ""
    elif item["type"] == "literal_error":
        said += "." + did_you_mean(item["input"], re.findall("'([^']*)'", item["ctx"]["expected"]))
    elif item["type"] == "float_type" and isinstance(item["input"], Mapping) and issubclass(model, Objective):
        said = "a number is needed; one that changes has the keys `from`, `to` and `until`"
    ended = f"{said.rstrip('.')}{'' if said.endswith('?') else '.'}"
    return f"`{key}: {shown(item['input'])}`: {ended}{_default(item, model)}"


def _default(item: Any, model: type[BaseModel]) -> str:
    """Return, for an option of an objective, what leaving it out means."""
    path = item["loc"]
    field = model.model_fields.get(str(path[0])) if len(path) == 1 and issubclass(model, Objective) else None
    if field is None or field.is_required() or isinstance(item["input"], Mapping):
        return ""
    return f" Leave it out for {field.get_default(call_default_factory=True)}."


def _keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Return the keys of what stands at a path of our own settings, as they are written; of others none."""
    for part in path:
        field = model.model_fields.get(str(part))
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    return [field.alias or name for name, field in model.model_fields.items()]


_KEYS = {"First": ("`name`", "`for`"), "DataWeights": ("`column`", "or `tokens`"), "RampSetting": ("`from`", "`to`")}
"""What a mapping must have, by the class that reads it."""


def _unknown(key: str, given: str, allowed: Collection[str], what: str = "a known name") -> list[str]:
    """Return a problem if `given` is not in `allowed`."""
    if given in allowed:
        return []
    return [f"`{key}`: `{given}` is not {what}.{did_you_mean(given, allowed)} Allowed: {', '.join(allowed)}."]
