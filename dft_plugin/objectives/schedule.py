"""Objectives that change during a run: options that are ramped, and another objective to begin with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dft_plugin.errors import ClockError
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
        """Return how much of the way to this point is done, in [0, 1].

        Raises:
            ClockError: it is a share of a run that is going on, and nobody knows how long that is.
        """
        if not clock.step:
            # Before a run nobody may know how long it will be.
            return 0.0 if self.point else 1.0
        end = self.steps(clock.last_step)
        if end is None:
            raise ClockError(
                f"a loss changes until {self.in_words}, of which step {clock.step} is done, and its clock does not "
                "say how many there will be. Give `last_step`, or write steps in place of a share."
            )
        return 1.0 if clock.step >= end else clock.step / end

    def steps(self, last_step: int | None) -> float | None:
        """Return after how many steps of a run it is reached; None where that depends on a length nobody knows."""
        if isinstance(self.point, int):
            return self.point
        if last_step is None:
            return None
        share = self.point * last_step
        # 0.28 * 25 is a little more than 7.
        return float(round(share)) if math.isclose(share, round(share), rel_tol=1e-9) else share

    def is_before(self, other: Until, last_step: int | None) -> bool:
        """Whether it is reached no later than another, as far as that is known."""
        if isinstance(self.point, int) == isinstance(other.point, int):
            return self.point <= other.point
        one, two = self.steps(last_step), other.steps(last_step)
        return one is not None and two is not None and one <= two

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

    def never_reached(self, last_step: int | None) -> list[str]:
        """List what of it would never hold in a run, with what to do.

        Args:
            last_step: how many steps the run has; None: nobody knows, and points are compared where they can be.
        """
        end, begun = last_step, None if self.first is None else self.first_until.steps(last_step)
        problems = []
        # Steps that are trained are 0 to last_step - 1. A share of a single step is nobody's mistake: a trial run.
        tried = end == 1 and not isinstance(self.first_until.point, int)
        if end is not None and begun is not None and begun > end - 1 and not tried:
            problems.append(
                f"`first` holds until {self.first_until.in_words} and the run has {_steps(end)}, so "
                f"that {self.objective.name} would never be trained. Give a smaller share of the run (`for: 0.2`), or "
                "fewer steps."
            )
        for name, ramp in self.ramps.items():
            until = ramp.until.steps(last_step)
            said = f"`{name}` goes from {ramp.start:g} to {ramp.end:g} until {ramp.until.in_words}"
            if until is not None and end is not None and until > end:
                problems.append(
                    f"{said} and the run has {_steps(end)}, so that it would never get to {ramp.end:g}. Give a share "
                    "of the run (`until: 0.3`), or fewer steps."
                )
            elif self.first is not None and ramp.until.is_before(self.first_until, last_step):
                problems.append(
                    f"{said}, and `first` holds until {self.first_until.in_words}, so that nothing of it "
                    f"would be trained. Give a later `until`, or write `{name}: {ramp.end:g}`."
                )
        return problems

    def _begins(self, clock: Clock) -> bool:
        return self.first_until.share_of(clock) < 1

    def __str__(self) -> str:
        said = call(self.objective, self.ramps)
        return said if self.first is None else f"{said} after {call(self.first)} until {self.first_until.in_words}"


def _steps(number: int) -> str:
    return f"{number} step{'s' if number > 1 else ''}"


def call(objective: Objective, ramps: Mapping[str, Ramp] | None = None) -> str:
    """Return `dft(alpha=0->1 until 30 % of the run, floor=0.0)`, for logs."""
    options = {**objective.model_dump(), **(ramps or {})}
    inner = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"{objective.name}({inner})" if inner else objective.name
