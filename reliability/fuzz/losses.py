"""Target `settings`: what stands after `loss:`, a mapping of every type. Nothing is trained."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any, get_args

from hypothesis import strategies as st

from dft_plugin.config.plugins import Catalogue, build_catalogue, build_manager
from dft_plugin.config.schedules import RAMP_KEYS
from dft_plugin.config.settings import ALWAYS_LEARN, OWN_KEYS, REFERENCES, Settings
from dft_plugin.objectives import FAMILY
from reliability.fuzz.values import ANYTHING, KEYS, weighted
from reliability.fuzz.verdict import Answered, judged, require

WHERE = "loss"


@cache
def catalogue() -> Catalogue:
    """Return what is shipped, without the plugins of this machine."""
    return build_catalogue(build_manager(third_party=False))


POINTS = st.one_of(st.integers(1, 500), st.floats(0, 1), st.sampled_from(["0.5", "10", "1e-1", 1.0, 0]))
NUMBERS = st.one_of(st.floats(0, 1), st.floats(0, 100), st.integers(0, 3), st.sampled_from(["1e-2", "0.5", -1, 101]))
RAMPS = weighted(
    (3, st.fixed_dictionaries({"from": NUMBERS, "to": NUMBERS, "until": POINTS})),
    (1, st.fixed_dictionaries({}, optional={"from": NUMBERS, "to": NUMBERS, "until": POINTS, "unti": POINTS})),
)
TOKENS = st.one_of(st.integers(0, 50), st.sampled_from([*ALWAYS_LEARN, "eso", "</think>", -1, "11", 200_000]))
OPTION = weighted((4, st.floats(0, 1)), (2, NUMBERS), (2, RAMPS), (1, ANYTHING))

_NAMES = [kind.name for kind in FAMILY]
_OPTIONS = sorted({name for kind in FAMILY for name in kind.model_fields})
_FACTORS = st.one_of(
    st.dictionaries(TOKENS, NUMBERS, max_size=3),
    st.lists(st.tuples(TOKENS, NUMBERS), max_size=3),
    st.lists(st.lists(ANYTHING, max_size=3), max_size=3),
)


def _often(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return weighted((9, good), (1, ANYTHING))


NAME = _often(st.sampled_from(_NAMES))
FIRST = weighted(
    (3, st.fixed_dictionaries({"name": NAME, "for": POINTS})),
    (1, st.fixed_dictionaries({}, optional={"name": NAME, "for": _often(POINTS), "alpha": OPTION, "floor": OPTION})),
)
OWN: dict[str, st.SearchStrategy[Any]] = {
    "name": NAME,
    "kernel": _often(st.sampled_from(["auto", "logits", "chunked", "blocked", "reference", "chunk"])),
    "scratch_mb": _often(st.sampled_from([1, 64, 300, 1 << 20, (1 << 20) + 1, 0])),
    "first": _often(FIRST),
    "always_learn": _often(st.one_of(TOKENS, st.lists(TOKENS, max_size=4))),
    "weights": _often(st.fixed_dictionaries({}, optional={"column": st.just("ratio"), "tokens": _FACTORS})),
    "reference": _often(st.sampled_from([*REFERENCES, "some/model"])),
    "log": _often(st.one_of(st.just("top1"), st.lists(st.sampled_from(["top1", "entropy"]), max_size=3))),
    "resume": _often(st.sampled_from(["same", "allow"])),
}


def _named(kind: Any) -> st.SearchStrategy[dict[Any, Any]]:
    """Draw a mapping for an objective: up to four of the keys that it has."""
    keys = sorted({*OWN, *kind.model_fields} - {"name"})
    values = {**OWN, **{name: _of_field(field) for name, field in kind.model_fields.items()}}
    return st.lists(st.sampled_from(keys), max_size=4, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({"name": st.just(kind.name), **{key: values[key] for key in chosen}})
    )


def _of_field(field: Any) -> st.SearchStrategy[Any]:
    """Draw what an option takes, mostly."""
    words = [word for word in get_args(field.annotation) if isinstance(word, str)]
    return _often(st.sampled_from(words)) if words else OPTION


LOSSES = weighted(
    (7, st.sampled_from(FAMILY).flatmap(_named)),
    (1, st.dictionaries(st.one_of(st.sampled_from([*OWN_KEYS, *_OPTIONS]), KEYS), ANYTHING, max_size=4)),
    (1, st.dictionaries(st.sampled_from([*_NAMES, "type", "loss"]), ANYTHING, min_size=1, max_size=2)),
    (1, ANYTHING),
)
"""What may stand after `loss:`."""


def check(value: Any) -> str:
    """Hold a value to the property; returns `answered` or `refused`."""
    outcome = judged(lambda: catalogue().settings(value), [f"`{WHERE}"])
    if not isinstance(outcome, Answered):
        return "refused"
    settings = outcome.value
    plan = judged(lambda: catalogue().plan(settings))
    require(isinstance(plan, Answered), "settings that were taken make no plan")
    judged(lambda: (settings.line(), settings.describe(), plan.value.describe(), catalogue().columns(settings)))
    _require_as_written(settings)
    _require_as_given(value, settings, plan.value.objective)
    return "answered"


def _require_as_written(settings: Settings) -> None:
    again = judged(lambda: catalogue().settings(json.loads(json.dumps(settings.as_written()))))
    require(isinstance(again, Answered), f"what was taken is refused in another process: {settings!r}"[:500])
    require(again.value == settings, f"another process reads {again.value!r} in the place of {settings!r}"[:900])


def _require_as_given(value: Any, settings: Settings, objective: Any) -> None:
    """Require numbers to be what was written."""
    for key, entry in settings.options.items():
        if isinstance(entry, (int, float)) and not isinstance(entry, bool):
            read = getattr(objective, key)
            require(read == entry and math.isfinite(read), f"{key}: {entry!r} became {read!r}")
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        require(settings.name == value["name"], f"{value['name']!r} became {settings.name!r}")


__all__ = ["LOSSES", "RAMP_KEYS", "catalogue", "check"]
