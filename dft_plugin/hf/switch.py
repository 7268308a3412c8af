"""The line that says when the objective of `first` is over."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

from tqdm.auto import tqdm

from dft_plugin.core.plan import LossPlan
from dft_plugin.objectives import Clock
from dft_plugin.objectives.schedule import call


def line(plan: LossPlan, before: Clock | None, now: Clock) -> str:
    """Say that another objective holds from this step on, or the first one still where a run is resumed; else nothing.

    Args:
        plan: of the run.
        before: how far the run was when it was asked last; None: never. A run that was resumed beyond the switch
            has said so before.
        now: how far it is.
    """
    schedule = plan.schedule
    if schedule is None or schedule.first is None or not now.step or (before is not None and before.step == now.step):
        return ""
    holds, held = (schedule.at(clock) is schedule.first for clock in (now, replace(now, step=now.step - 1)))
    if holds and before is None:
        # Resumed, maybe with another length than before, of which a share is another step.
        end = math.ceil(schedule.first_until.steps(now.last_step) or 0)
        return f"dft: loss: {call(schedule.first)} at step {now.step}, where the run goes on, and until step {end}"
    if holds or not held:
        return ""
    then = call(schedule.objective, schedule.ramps)
    return f"dft: loss: {call(schedule.first)} until step {now.step}, {then} from here on"


def say(plan: LossPlan, before: Clock | None, now: Clock) -> None:
    """Write it, if there is anything to say; above the bar that shows the progress."""
    said = line(plan, before, now)
    if said:
        tqdm.write(said, file=sys.stderr)
