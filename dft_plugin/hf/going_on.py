"""What of a trainer is going on: a pass over data, and a step of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dft_plugin.core.stats import Tally
from dft_plugin.hf.batch_parts import BatchParts
from dft_plugin.hf.division import Division
from dft_plugin.hf.evaluation import EvaluationRows
from dft_plugin.hf.finite import Finite
from dft_plugin.hf.rescaling import Rescaling
from dft_plugin.objectives import Clock


@dataclass
class Pass:
    """A training, an evaluation or a prediction that is going on.

    Attributes:
        tally: statistics of the calls that belong to it, since its last log.
        rows: which rows of an evaluation's batches count; None in training.
        due: statistics that were reduced for the log that comes next.
        clock: how far the run was in its last step.
        rescaling: of the optimizer step that is going on.
        finite: looks after the loss of a training; None in an evaluation.
    """

    tally: Tally
    rows: EvaluationRows | None = None
    due: dict[str, float] | None = None
    clock: Clock | None = None
    rescaling: Rescaling = field(default_factory=Rescaling)
    finite: Finite | None = None


def clock_of(state: Any) -> Clock:
    """Return how far a trainer is, given its `TrainerState`, which knows the number of steps once it trains."""
    last_step = state.max_steps if state.max_steps > 0 else None
    # It may be resumed with fewer steps than it has done.
    return Clock.of_run(state.global_step, last_step, float(state.epoch or 0))


@dataclass
class Step:
    """A training or prediction step that is going on.

    Attributes:
        training: which of the two.
        calls: labelled passes that were answered when it began.
        parts: of a prediction step, which rows of its batch are still to be counted.
        division: follows the loss that was given to somebody who has still to divide it by the accumulation steps.
    """

    training: bool
    calls: int
    parts: BatchParts | None = None
    division: Division = field(default_factory=Division)
