"""TrainerHook: what every Hugging Face Trainer needs so that an attached loss is right, seen and never off."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Trainer

from dft_plugin.config.handover import swapped
from dft_plugin.core.stats import Tally
from dft_plugin.hf import best, first_log, guard, notebook, splits, switch
from dft_plugin.hf.batch_parts import BatchParts
from dft_plugin.hf.carrying import carry, columns_of
from dft_plugin.hf.counting import (
    averaging_processes,
    fetch_counted,
    is_scaled,
    micro_batches_of,
    number_of_items,
    with_number_of_items,
)
from dft_plugin.hf.division import check_division
from dft_plugin.hf.evaluation import evaluation_rows
from dft_plugin.hf.finite import Finite
from dft_plugin.hf.going_on import Pass, Step, clock_of
from dft_plugin.hf.guard import not_active
from dft_plugin.hf.in_the_way import in_the_way
from dft_plugin.hf.loss_calls import TrainerAttachment, naming_missing_logits
from dft_plugin.hf.recorded import Recorded
from dft_plugin.hf.reducing import reduced
from dft_plugin.hf.rescaling import Rescaling
from dft_plugin.hf.wrapping import Wrapper, wrapped

__all__ = ["TrainerHook", "is_trainer", "not_active"]

logger = logging.getLogger(__name__)


class TrainerHook(Recorded):
    """Wraps methods of one trainer instance around an attachment.

    Subclassed by hosts whose trainers compute the loss in a way of their own.

    Attributes:
        trainer: the trainer.
        attachment: on the trainer's model.
        plan: what was asked for.
        replaced: the trainer's settings that were changed, in words, for the start-up line.
        choice: what was changed for the choice of the best model; it can be put back by itself.
        columns_hint: what to do where a column of the data did not reach the trainer.
    """

    attachment_class: ClassVar[type[TrainerAttachment]] = TrainerAttachment
    columns_hint: ClassVar[str] = ""

    def __init__(self, trainer: Trainer, attachment: TrainerAttachment) -> None:
        super().__init__(attachment.undo)
        self.trainer: Any = trainer
        self.attachment = attachment
        self.plan = attachment.plan
        self.replaced: list[str] = []
        self.choice = Wrapper(attachment.undo)
        self._warned = False
        self._divides: set[int] = set()
        self._pass: Pass | None = None
        self._step: Step | None = None
        self._count: Tensor | None = None

    @classmethod
    def conflicts(cls, trainer: Trainer) -> list[str]:
        """List what would bypass the loss: each with what to change. Called before anything is touched."""
        return [*in_the_way(trainer), *best.problems(trainer)]

    @classmethod
    def without_boundaries(cls, trainer: Trainer) -> list[str]:
        """List what keeps the batches from saying where a sequence ends."""
        del trainer
        return []

    @classmethod
    def ends(cls, trainer: Trainer) -> Sequence[int]:
        """Return ids that the host knows to end an answer, beside those of the tokenizer and its chat template."""
        del trainer
        return ()

    def install(self) -> None:
        """Wrap the trainer's methods, and mend its choice of the best model. `attachment.detach()` undoes it."""
        self.attachment.trainer_only = True
        self.wrap(self.trainer)
        carry(self.trainer, columns_of(self.plan), self.change)
        notebook.show_statistics(self.trainer, self.change)
        self.replaced += best.prefer(self.trainer, self.choice.change)

    def remove(self) -> None:
        """Put model and trainer back as they were, also where somebody else has the model by now."""
        self.attachment.detach()

    @wrapped
    def _inner_training_loop(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Train: an attempt that fails (a batch size that does not fit, say) leaves no statistics behind."""
        splits.require_whole(self.trainer, self.plan)
        self.go_on(kwargs.get("resume_from_checkpoint"))
        with self._in_pass(Pass(self._new_tally(), finite=Finite(self.plan, self.plan.nonfinite))):
            try:
                result = inner(*args, **kwargs)
                self._finite.close(self.trainer)
                return result
            finally:
                self._finite.give_back()

    @wrapped
    def evaluation_loop(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict, and put the statistics of exactly this pass into its metrics."""
        return self._evaluate(inner, *args, **kwargs)

    @wrapped
    def prediction_loop(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict by the legacy loop of transformers 4."""
        return self._evaluate(inner, *args, **kwargs)

    def _evaluate(self, inner: Callable[..., Any], dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        processes = self.trainer.accelerator.num_processes
        with evaluation_rows(dataloader, processes) as rows, self._in_pass(Pass(self._new_tally(), rows)) as this:
            output = inner(dataloader, *args, **kwargs)
        # After the dataloader: description, prediction_loss_only, ignore_keys, metric_key_prefix.
        prefix = kwargs.get("metric_key_prefix", args[3] if len(args) > 3 else "eval")
        if f"{prefix}_loss" in output.metrics:
            # The trainer has gathered it, so all ranks are here.
            output.metrics.update(self._reduce(this, f"{prefix}_"))
        return output

    @wrapped
    def get_batch_samples(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Fetch the micro-batches of a step, and count its targets over them and over ranks."""
        samples, theirs, self._count = fetch_counted(self.trainer, inner, *args, **kwargs)
        self._rescaling.expect(self._count)
        return samples, theirs if theirs is None or self._count is None else self._count

    @wrapped
    def training_step(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a step, and stop the run before the backward pass if our loss was not computed in it."""
        accelerator = self.trainer.accelerator
        backward = accelerator.backward
        step = Step(True, self.attachment.calls)

        def guarded(loss: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._require(step.calls, guard.BEFORE_BACKWARD)
            check_division(self.trainer, step.division, loss, self._divides)
            finite.look(self.trainer, loss)
            # DeepSpeed 0.19 divides by the micro-batches, unasked, where its engine's own output goes backward.
            return backward(loss.view_as(loss), *args, **kwargs)

        finite = self._finite
        tally = self._new_tally() if self._pass is None else self._pass.tally
        finite.begin(self.trainer, tally)
        with swapped(self, "_step", step), swapped(accelerator, "backward", guarded):
            result = inner(*args, **kwargs)
            self._require(step.calls, guard.AFTER_BACKWARD)
            check_division(self.trainer, step.division, None, self._divides)
            if not finite.looked:
                finite.look(self.trainer, result)
        result = self._rescaling.finish(self.trainer, result)
        finite.end(self.trainer, tally)
        return result

    @wrapped
    def prediction_step(
        self, inner: Callable[..., Any], model: Any, inputs: Any, prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """Evaluate a batch; logits are made only where somebody reads them."""
        calls, step, counted = self.attachment.calls, self._step, None
        # A step may ask about parts of its batch by calling itself.
        if step is None or step.training:
            rows = self._pass.rows if self._pass is not None else None
            counted = rows.counted(inputs) if rows is not None else None
            step = Step(False, calls, BatchParts(inputs, counted, rows.warn if rows is not None else logger.warning))
        want_logits = not prediction_loss_only or self._keeps_logits()
        how = {"want_logits": want_logits, "counted_B": counted, "mean_of_nothing": math.nan, "rescaling": None}
        with swapped(self, "_step", step), self.attachment.loss_call(grad=False, tally=self._tally(), **how):
            result = inner(model, inputs, prediction_loss_only, *args, **kwargs)
            if result[0] is not None:
                self._require(calls, guard.EVALUATION)
        return result

    @wrapped
    def compute_loss(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Answer the trainer's own call for a loss, and nobody else's."""
        self.attachment.clock = clock_of(self.trainer.state)
        if self._pass is not None:
            if self.trainer.state.is_world_process_zero and self._step is not None and self._step.training:
                switch.say(self.plan, self._pass.clock, self.attachment.clock)
            self._pass.clock = self.attachment.clock
        with naming_missing_logits(lambda: self.attachment.calls):
            if self._step is not None and self._step.training:
                return self._compute_training_loss(self._step, inner, *args, **kwargs)
            return self._compute_other_loss(self._step, inner, *args, **kwargs)

    def _compute_other_loss(self, step: Step | None, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Answer in a prediction step, or for somebody who asks the trainer for a loss."""
        counts, counted = True, None
        if step is not None and step.parts is not None:
            counts, counted = step.parts.take(args[1] if len(args) > 1 else kwargs.get("inputs"))
        tally = self._tally() if counts else self._new_tally()
        how = {"tally": tally, "counted_B": counted, "rescaling": None}
        with self.attachment.loss_call(grad=torch.is_grad_enabled(), **how):
            return inner(*args, **kwargs)

    def _compute_training_loss(self, step: Step, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Answer in a training step."""
        calls, tally, steps = self.attachment.calls, self._tally(), micro_batches_of(self.trainer)
        how = {"watch": self._finite.watch, **({"want_logits": True} if self._keeps_logits() else {})}
        with self.attachment.answering(**how):
            if self._count is None:
                splits.require_counted(self.trainer, self.plan.holding(self.attachment.clock), steps)
                with self.attachment.loss_call(grad=torch.is_grad_enabled(), tally=tally):
                    loss = inner(*args, **kwargs)
            else:
                with self.attachment.answering(rescaling=self._rescaling):
                    loss = self.compute_training_loss(inner, self._count, tally, *args, **kwargs)
        if self._count is not None:
            stock = type(self.trainer).training_step is Trainer.training_step
            # Windows of a size that was looked at are not waited for again.
            if self.divided_later(args, kwargs) > 1 and not stock and steps not in self._divides:
                step.division.follow(loss[0] if isinstance(loss, tuple) else loss)
        self._require(calls, guard.BEFORE_BACKWARD)
        self._rescaling.require_nothing_else(loss, self.trainer)
        return loss

    def compute_training_loss(
        self, inner: Callable[..., Any], count: Tensor, tally: Tally, *args: Any, **kwargs: Any
    ) -> Any:
        """Have the loss divided by the targets of the whole step, whoever passes their number on or drops it.

        Args:
            inner: the trainer's `compute_loss`.
            count: the targets of the step, of all micro-batches and ranks.
            tally: gets the statistics.
            args: positional arguments of `compute_loss`.
            kwargs: its keyword arguments.
        """
        # The gradient is a mean over ranks, so this is the sum of all over the number of all.
        divisor = count / averaging_processes(self.trainer) / self.divided_later(args, kwargs)
        if number_of_items(args, kwargs) is not None:
            args, kwargs = with_number_of_items(divisor, args, kwargs)
        with (
            self.attachment.loss_call(grad=torch.is_grad_enabled(), tally=tally, num_items=divisor),
            # The ranks are in the divisor: who multiplies by their number and who does not now get the same.
            swapped(self.trainer.args, "average_tokens_across_devices", False),
        ):
            return inner(*args, **kwargs)

    @wrapped
    def _maybe_log_save_evaluate(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Reduce the statistics of training here, where all ranks are; a call of `log` may come from one alone."""
        trainer, this = self.trainer, self._pass
        due = trainer.control.should_log and trainer.state.global_step > trainer._globalstep_last_logged
        if this is None or not due:
            return inner(*args, **kwargs)
        this.due = self._reduce(this, "")
        besides = self._finite.logs()
        # Where all steps were left out there is nothing to judge by.
        judged = bool(this.due) or not any(besides.values())
        if judged and not self._warned and trainer.state.is_world_process_zero:
            self._warned = first_log.warn(this.due, self.plan, this.clock)
        this.due |= besides
        try:
            return inner(*args, **kwargs)
        finally:
            this.due = None

    @wrapped
    def log(self, inner: Callable[..., Any], logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
        """Put `dft/*` beside the training loss. No rank waits for another here."""
        this = self._pass
        if this is not None and this.due is not None and "loss" in logs:
            logs.update(this.due)
            this.due = None
        return inner(logs, *args, **kwargs)

    @contextmanager
    def _in_pass(self, this: Pass) -> Iterator[Pass]:
        before, self._pass = self._pass, this
        step, self._step = self._step, None
        try:
            yield this
        finally:
            self._pass, self._step = before, step
            if before is None:
                self._count = None

    @property
    def _rescaling(self) -> Rescaling:
        """The pass's; a step outside of a pass is a whole one."""
        return Rescaling() if self._pass is None else self._pass.rescaling

    @property
    def _finite(self) -> Finite:
        """The training's; a step outside of one is only looked at."""
        found = None if self._pass is None else self._pass.finite
        return Finite(self.plan, "warn") if found is None else found

    def _new_tally(self) -> Tally:
        return Tally(self.plan.statistics)

    def _tally(self) -> Tally:
        """The pass's; a step outside of a pass, or a loss outside of a step, is in no log."""
        return self._new_tally() if self._step is None or self._pass is None else self._pass.tally

    def divided_later(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        """By how much the loss of a micro-batch is divided after `compute_loss`, which was called with these.

        Whoever asks for one without a number of items asks for its mean, and divides that by the accumulation steps;
        transformers divides as well where the model takes no such number, whoever has counted.
        """
        return 1 if is_scaled(self.trainer, args, kwargs) else micro_batches_of(self.trainer)

    def _keeps_logits(self) -> bool:
        """Whether a `compute_loss` of somebody's own may read the logits, since it was asked that they be made."""
        return self.plan.path == "logits" and type(self.trainer).compute_loss is not Trainer.compute_loss

    def _require(self, calls: int, happened: str) -> None:
        if self.attachment.calls == calls:
            raise not_active(self.attachment, happened, self.trainer.model)

    def _reduce(self, this: Pass, prefix: str) -> dict[str, float]:
        """Return what a pass has tallied, over all ranks. Every rank must call it."""
        whole = None if this.finite is None else this.finite.whole
        stats, finite = reduced(self.trainer, this.tally, this.rows, whole)
        self.keep_probabilities(prefix, stats)
        if this.finite is not None:
            this.finite.logged(self.trainer, finite)
        logs = stats.as_logs(prefix)
        changing = self.plan.logs(this.clock) if logs else {}
        return logs | {prefix + key: value for key, value in changing.items()}


def is_trainer(trainer: object) -> bool:
    """Say whether `trainer` is a `transformers.Trainer`."""
    return isinstance(trainer, Trainer)
