"""What becomes of a training step whose loss is not a finite number: said, stopped, or left out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dft_plugin.core.plan import LossPlan
from dft_plugin.core.stats import LossStats, Tally
from dft_plugin.core.transfer import bring
from dft_plugin.errors import ConflictError, NonFiniteError
from dft_plugin.hf.nonfinite import Found, Watch, exchanged, in_words
from dft_plugin.hf.rescaling import are_finite, gradients, require_steps_outside, steps_inside
from dft_plugin.saying import warn

logger = logging.getLogger(__name__)

SKIPPED = "dft/skipped"
"""Optimizer steps that were left out since the last log."""

_SAID = 3
"""Steps that are left out with a warning; after them the log counts."""

NEXT = (
    "A weight that such a step moves is not finite from then on: go on from a checkpoint of before. `nonfinite: "
    "error` in the mapping of `loss:` stops before the optimizer moves, `nonfinite: skip` leaves such steps out."
)

BEHIND = (
    "An earlier step has moved them by gradients that were not finite, behind a loss that was: those are not looked "
    "at. Go on from a checkpoint of before, with a lower learning rate, or in float32."
)


class Finite:
    """Looks after the loss of one training.

    Args:
        plan: what is computed.
        how: what becomes of a step: `warn`, `error` or `skip`.

    Attributes:
        watch: of its micro-batches.
        whole: the sum of what went backward since the last log, where that is to be found by the log; a scalar.
        skipped: steps that were left out since the last log.
        looked: whether anything of this micro-batch has been looked at.
    """

    def __init__(self, plan: LossPlan, how: str) -> None:
        self.watch = Watch(plan)
        self.whole: Tensor | None = None
        self.skipped = 0
        self._how = how
        self._bad: Tensor | None = None
        self.looked, self._outside = False, False
        self._begun = False
        self._before: LossStats | None = None
        self._leave_out: str | None = None
        self._left: LeftOut | None = None
        self._said = 0

    def begin(self, trainer: Any, tally: Tally) -> None:
        """Begin a micro-batch.

        Raises:
            ConflictError: the step that was to be left out was made in another way.
        """
        self.looked = False
        if self._left is not None:
            self._left.end(trainer)
            self._left = None
        if not self._begun:
            self._begun, self._before = True, tally.held

    def look(self, trainer: Any, loss: Tensor) -> None:
        """Look at a loss that goes backward; in the last micro-batch of a step, all ranks agree.

        Every rank must call it. It waits for the device in the last micro-batch of a step, where that was asked for.

        Raises:
            NonFiniteError: the loss of the step is not finite, and that is an error. No weight was moved.
        """
        self.looked = True
        bad = self.watch.spoils(loss) if self._how != "warn" else None
        self.watch.end(loss, trainer.state.global_step + 1)
        if bad is None:
            mine = loss.detach().sum()
            self.whole = mine if self.whole is None else self.whole + bring(mine, self.whole.device)
            return
        if not self._outside:
            self._require_in_time(trainer)
            self._outside = True
        self._bad = bad if self._bad is None else self._bad | bad.to(self._bad.device)
        if not trainer.accelerator.sync_gradients:
            return
        # Ranks that share weights do what the others do.
        flag = self._bad.to(trainer.accelerator.device, torch.float32).reshape(1)
        self._bad = None
        if float(trainer.accelerator.reduce(flag, reduction="sum")):
            self._decide(trainer)

    def _require_in_time(self, trainer: Any) -> None:
        if self._how == "skip":
            why = "`nonfinite: skip` needs the gradients of a whole step as they are"
            require_steps_outside(trainer, why, "`nonfinite: warn`")
        elif trainer.args.gradient_accumulation_steps > 1:
            why = "`nonfinite: error` is agreed on with the last micro-batch of a step"
            # DeepSpeed's hooks send gradients to their ranks; it steps afterwards.
            require_steps_outside(trainer, why, "`nonfinite: warn`", harmless="deepspeed")

    def _decide(self, trainer: Any) -> None:
        said = self._in_words(trainer)
        if self._how == "error":
            _require_finite(trainer, said)
            raise NonFiniteError(
                f"dft: the loss is not a finite number in {said}. The run is stopped before the optimizer moves a "
                "weight (`nonfinite: error`). Look at these rows, or write `nonfinite: skip` to leave such steps out."
            )
        self._leave_out = said
        if self._said < _SAID and trainer.is_world_process_zero():
            more = f" From here on the log counts ({SKIPPED})." if self._said == _SAID - 1 else ""
            warn(logger, "dft: a step is left out, since its loss is not a finite number: %s.%s", said, more)
        self._said += 1

    def end(self, trainer: Any, tally: Tally) -> None:
        """End a micro-batch after its backward pass, and the step with its last one.

        Raises:
            NonFiniteError: the step is to be left out, and the weights were not finite before it.
        """
        if not trainer.accelerator.sync_gradients:
            return
        self._begun = False
        if self._leave_out is None:
            return
        # Not before: a step may lend its weights other values.
        _require_finite(trainer, self._leave_out)
        self._leave_out = None
        self.skipped += 1
        tally.held = self._before
        self.watch.forget()
        for gradient in gradients(trainer):
            gradient.zero_()
        self._left = LeftOut(trainer.optimizer, trainer.accelerator.scaler)

    def close(self, trainer: Any) -> None:
        """End a training, and warn of what came after its last log. Every rank must call it; it waits for the device.

        Raises:
            ConflictError: the step that was to be left out was made in another way.
        """
        if self._left is not None:
            self._left.end(trainer)
            self._left = None
        if self._said and self._how == "warn":
            return
        if are_finite(trainer, self.whole):
            return
        every = exchanged(trainer, self.watch.read()) if self._how == "warn" else []
        if every:
            self._warn(trainer, self._words_of(trainer, every))
        elif trainer.is_world_process_zero():
            warn(logger, "dft: the training has ended with weights that are not finite. %s", BEHIND)

    def give_back(self) -> None:
        """Leave the optimizer as it was, where a training has failed behind a step that was left out."""
        if self._left is not None:
            self._left.give_back()
            self._left = None

    def logged(self, trainer: Any, finite: bool) -> None:
        """Warn, once, where statistics or losses of all ranks are not finite. Every rank must call it."""
        self.whole = None
        if not self._said and not finite:
            self._warn(trainer, self._in_words(trainer))
        if self._begun:
            # The log came within a step; what it took is not put back.
            self._before = None

    def _warn(self, trainer: Any, said: str) -> None:
        self._said += 1
        if trainer.is_world_process_zero():
            warn(logger, "dft: the statistics are no finite numbers from %s on. %s", said, NEXT)

    def logs(self) -> dict[str, float]:
        """Return what the log says besides, and begin to count anew."""
        skipped, self.skipped = self.skipped, 0
        return {SKIPPED: float(skipped)} if self._how == "skip" else {}

    def _in_words(self, trainer: Any) -> str:
        every = exchanged(trainer, self.watch.read())
        return self._words_of(trainer, every) if every else f"step {trainer.state.global_step + 1}"

    def _words_of(self, trainer: Any, every: list[Found]) -> str:
        steps = trainer.args.gradient_accumulation_steps
        return in_words(every, self.watch.words, trainer.accelerator.num_processes, steps)


def _require_finite(trainer: Any, said: str) -> None:
    if not are_finite(trainer):
        raise NonFiniteError(
            f"dft: the loss is not a finite number in {said}, and neither are the weights, so that the rows are not "
            f"to blame and every step from here on is like this one. The run is stopped. {BEHIND}"
        )


class LeftOut:
    """One call of an optimizer's `step` that does nothing, as one in which a loss scaler has found an overflow.

    The trainer then leaves the schedule of the learning rate where it is, too, and counts the step.

    Args:
        optimizer: the trainer's.
        scaler: the accelerator's; None without float16.
    """

    def __init__(self, optimizer: Any, scaler: Any) -> None:
        self._optimizer, self._scaler = optimizer, scaler
        self._called, self._own = False, vars(optimizer).get("step")
        # accelerate has it for float16; a scheduler and a trainer ask for it.
        self._flag = hasattr(optimizer, "_is_overflow")
        optimizer.step = self._step

    def _step(self, closure: Callable[[], Any] | None = None) -> None:
        del closure
        self._called = True
        self._put_step_back()
        if self._flag:
            self._optimizer._is_overflow = True
        if self._scaler is not None:
            try:
                self._scaler.update()
            except AssertionError:
                # No gradient of this step was unscaled, so that there is nothing to update.
                return

    def _put_step_back(self) -> None:
        if self._own is not None:
            self._optimizer.step = self._own
        else:
            vars(self._optimizer).pop("step", None)

    def give_back(self) -> None:
        """Have the optimizer make steps again."""
        if self._flag:
            self._optimizer._is_overflow = False
        if not self._called:
            self._put_step_back()

    def end(self, trainer: Any) -> None:
        """Have the optimizer make steps again.

        Raises:
            ConflictError: it was never called.
        """
        self.give_back()
        if not self._called:
            raise ConflictError(
                [
                    f"`nonfinite: skip`: {type(trainer).__name__} does not step by `trainer.optimizer.step`, so that "
                    "a step could not be left out. Write `nonfinite: error`."
                ]
            )


def problems(trainer: Any, plan: LossPlan) -> list[str]:
    """List why steps of a trainer cannot be left out, or not be stopped in time: each with what to change.

    Args:
        trainer: that is to be trained.
        plan: what is to be computed.
    """
    if plan.nonfinite == "warn":
        return []
    engine, optimizer = steps_inside(trainer)
    if plan.nonfinite == "error":
        # It is agreed before the backward pass of a step's last micro-batch; earlier ones have moved weights by then.
        steps = trainer.args.gradient_accumulation_steps
        if optimizer is None or steps == 1:
            return []
        return [
            f"`nonfinite: error`, and the optimizer {optimizer} steps inside the backward pass of each of the "
            f"{steps} micro-batches of a step. Set gradient_accumulation_steps to 1, choose an optimizer that steps "
            "afterwards, or write `nonfinite: warn`."
        ]
    found = [
        f"`nonfinite: skip`, and {engine} steps inside the backward pass, with gradients that nobody else finds. "
        "Use DDP or FSDP, or write `nonfinite: error`."
    ] * (engine is not None)
    found += [
        f"`nonfinite: skip`, and the optimizer {optimizer} has stepped inside the backward pass by then. Choose one "
        "that steps afterwards, or write `nonfinite: error`."
    ] * (optimizer is not None)
    return found
