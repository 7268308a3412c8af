"""Options of which one may leave another without effect: that is refused, by both names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

WITHOUT_EFFECT = "without_effect"
"""Type of the error, in pydantic's list; `option` in its context is the one that has none."""

_CHANGING = "changing"


def while_changing(options: Collection[str]) -> dict[str, Any]:
    """Return the context in which pydantic is to make an object at one end of ramps, of these options."""
    return {_CHANGING: frozenset(options)}


MOST = 100.0
"""Largest value of an option that has no bound of its own. An exponent of 100 gives a token of p = 0.9 a weight of
3e-5, and so trains nothing; a strength, a temperature or a number of nats of 100 leaves the other side without
effect."""


class Options(BaseModel):
    """Base of what has options."""

    without_effect: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {}
    """Options that have none beside certain values of another: `{"threshold": ("by", ("prob",)), "floor": ("alpha",
    (0,))}`. To give both is an error, since a user who writes an option means to change something; but for an option
    at its default beside a number, which one goes over in a config that writes out all."""

    @model_validator(mode="after")
    def _refuse_without_effect(self, info: ValidationInfo) -> Options:
        changing = (info.context or {}).get(_CHANGING, ())
        for option, (other, values) in self.without_effect.items():
            # A ramp leaves that value, or comes to it.
            if other in changing or not self._is_meant(option, beside=other):
                continue
            value = getattr(self, other)
            if value in values:
                raise PydanticCustomError(
                    WITHOUT_EFFECT,
                    "`{option}` has no effect with `{other}: {value}`{why}. Drop it, or give another `{other}`"
                    "{allowed}",
                    {
                        "option": option,
                        "other": other,
                        "value": f"{value:g}" if isinstance(value, float) else value,
                        "why": "" if other in self.model_fields_set else ", which is the default",
                        "allowed": _allowed(type(self), option),
                    },
                )
        return self

    def _is_meant(self, option: str, beside: str) -> bool:
        if option not in self.model_fields_set:
            return False
        value = getattr(self, option)
        if value is None:
            return False
        return isinstance(getattr(self, beside), str) or value != type(self).model_fields[option].default


def values_left(kind: type[Options], option: str) -> list[Any]:
    """Return the values of another option beside which an option has an effect, where they can be listed."""
    other, without = kind.without_effect[option]
    return [value for value in get_args(kind.model_fields[other].annotation) if value not in without]


def _allowed(kind: type[Options], option: str) -> str:
    left = ", ".join(map(str, values_left(kind, option)))
    return f": {left}" if left else ""
