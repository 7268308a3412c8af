"""Options of which one may leave another without effect: that is refused, by both names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, model_validator
from pydantic_core import PydanticCustomError

WITHOUT_EFFECT = "without_effect"
"""Type of the error, in pydantic's list; `option` in its context is the one that has none."""


class Options(BaseModel):
    """Base of what has options."""

    without_effect: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {}
    """Options that have none beside certain values of another: `{"threshold": ("by", ("prob",))}`. To give both is an
    error, since a user who writes an option means to change something."""

    @model_validator(mode="after")
    def _refuse_without_effect(self) -> Options:
        for option, (other, values) in self.without_effect.items():
            given = option in self.model_fields_set and getattr(self, option) is not None
            if given and getattr(self, other) in values:
                raise PydanticCustomError(
                    WITHOUT_EFFECT,
                    "`{option}` has no effect with `{other}: {value}`{why}. Drop it, or give another `{other}`"
                    "{allowed}",
                    {
                        "option": option,
                        "other": other,
                        "value": getattr(self, other),
                        "why": "" if other in self.model_fields_set else ", which is the default",
                        "allowed": _allowed(type(self), option),
                    },
                )
        return self


def values_left(kind: type[Options], option: str) -> list[Any]:
    """Return the values of another option beside which an option has an effect, where they can be listed."""
    other, without = kind.without_effect[option]
    return [value for value in get_args(kind.model_fields[other].annotation) if value not in without]


def _allowed(kind: type[Options], option: str) -> str:
    left = ", ".join(map(str, values_left(kind, option)))
    return f": {left}" if left else ""
