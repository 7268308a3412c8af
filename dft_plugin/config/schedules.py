"""Options that change during a run: `alpha: {from: 0.0, to: 1.0, until: 0.3}`, as words and as objects. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dft_plugin.objectives import Number, Objective
from dft_plugin.objectives.options import while_changing
from dft_plugin.objectives.schedule import Ramp, Until

RAMP_KEYS = ("from", "to", "until")

Kind = TypeVar("Kind", bound=BaseModel)


def _point(value: Any) -> Any:
    """Refuse what is neither a step nor a share; YAML 1.1 reads `1e-1` as a string."""
    if isinstance(value, str):
        # "1" is a step, as 1 is.
        value = int(value) if value.strip().isdecimal() else float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("a number of steps (an integer) or a share of the run (a fraction up to 1.0) is needed")
    if isinstance(value, int) and value < 1:
        raise ValueError("1 step or more is needed")
    if isinstance(value, float) and not 0 < value <= 1:
        raise ValueError("a share of the run lies above 0 and is at most 1.0; write steps as an integer")
    return value


Point = Annotated[int | float, BeforeValidator(_point)]
"""A point of a run: optimizer steps (an integer), or a share of all (a fraction)."""


class RampSetting(BaseModel):
    """What stands in the place of a number that changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    start: Number = Field(alias="from", description="Value at the beginning.")
    end: Number = Field(alias="to", description="Value from `until` on.")
    until: Point = Field(description="Where it is reached: steps (an integer) or a share of the run (a fraction).")

    @model_validator(mode="after")
    def _goes_somewhere(self) -> RampSetting:
        if self.start == self.end:
            raise ValueError(f"it stays what it is; write {self.end:g} in its place")
        return self

    def ramp(self) -> Ramp:
        """Return the object."""
        return Ramp(self.start, self.end, Until(self.until))

    def __str__(self) -> str:
        return str(self.ramp())


def is_ramp(value: Any) -> bool:
    """Say whether a value is meant to change during the run."""
    return isinstance(value, Mapping) and bool(set(map(str, value)) & set(RAMP_KEYS))


def rampable(objective: type[Objective]) -> list[str]:
    """Return the options that may change: numbers between which others lie, not choices, switches or counts."""
    kinds = {name: field.annotation for name, field in objective.model_fields.items()}
    return [name for name, kind in kinds.items() if float in (kind, *get_args(kind))]


def ends(options: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the options with each ramp replaced by its value at `key`, `from` or `to`."""
    return {name: value.get(key) if is_ramp(value) else value for name, value in options.items()}


def made(kind: type[Kind], options: Mapping[str, Any], key: str) -> Kind:
    """Make an objective as it is at one end of its ramps, `from` or `to`.

    Raises:
        pydantic.ValidationError: what is wrong with the options there.
    """
    changing = [name for name, value in options.items() if is_ramp(value)]
    return kind.model_validate(ends(options, key), context=while_changing(changing))


def ramps(options: Mapping[str, Any]) -> dict[str, Ramp]:
    """Return the ramps among options that were checked."""
    return {name: RampSetting.model_validate(value).ramp() for name, value in options.items() if is_ramp(value)}
