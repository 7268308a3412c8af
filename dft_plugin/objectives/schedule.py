"""Objectives that change during a run: options that are ramped, and another objective to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dft_plugin.objectives.base import Objective
from dft_plugin.objectives.targets import Clock


@dataclass(frozen=True)
class Until:
    """A point of a run: an optimizer step (an integer), or a share of all steps (a fraction)."""

    point: int | float

    @property
    def in_words(self) -> str:
        """`step 30`, or `30 % of the run`."""
        return f"step {self.point}" if isinstance(self.point, int) else f"{100 * self.point:g} % of the run"

    def share_of(self, clock: Clock) -> float:
        """Return how much of the way to this point is done, in [0, 1]."""
        if not clock.step:
            # Before a run nobody may know how long it will be.
            return 0.0 if self.point else 1.0
        end = self.point if isinstance(self.point, int) else self.point * clock.last_step
        return 1.0 if clock.step >= end else clock.step / end

    def __str__(self) -> str:
        return f"{self.point:g}"


@dataclass(frozen=True)
class Ramp:
    """A number that goes from `start` to `end` in a straight line, and stays there.

    Attributes:
        start: its value at step 0.
        end: its value from `until` on.
        until: where it arrives.
    """

    start: float
    end: float
    until: Until

    def at(self, clock: Clock) -> float:
        """Return its value."""
        share = self.until.share_of(clock)
        return self.start + (self.end - self.start) * share

    def __str__(self) -> str:
        return f"{self.start:g}->{self.end:g} until {self.until.in_words}"


@dataclass(frozen=True)
class Schedule:
    """Which objective holds when.

    Attributes:
        objective: the one that holds in the end, with its ramped options where they arrive.
        ramps: its options that change, by name.
        first: one that holds before it, or None.
        first_until: how long.
    """

    objective: Objective
    ramps: Mapping[str, Ramp] = field(default_factory=dict)
    first: Objective | None = None
    first_until: Until = Until(0)

    @property
    def changes(self) -> bool:
        """Whether it needs a clock."""
        return bool(self.ramps) or self.first is not None

    def at(self, clock: Clock) -> Objective:
        """Return the objective that holds, each option a number."""
        if self.first is not None and self._begins(clock):
            return self.first
        return self.objective.model_copy(update={name: ramp.at(clock) for name, ramp in self.ramps.items()})

    def logs(self, clock: Clock) -> dict[str, float]:
        """Return what the log says of it: `dft/OPTION` for each ramped option that holds now, as it stands."""
        if self.first is not None and self._begins(clock):
            return {}
        return {f"dft/{name}": ramp.at(clock) for name, ramp in self.ramps.items()}

    def _begins(self, clock: Clock) -> bool:
        return self.first_until.share_of(clock) < 1

    def __str__(self) -> str:
        said = call(self.objective, self.ramps)
        return said if self.first is None else f"{said} after {call(self.first)} until {self.first_until.in_words}"


def call(objective: Objective, ramps: Mapping[str, Ramp] | None = None) -> str:
    """Return `dft(alpha=0->1 until 30 % of the run, floor=0.0)`, for logs."""
    options = {**objective.model_dump(), **(ramps or {})}
    inner = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"{objective.name}({inner})" if inner else objective.name
