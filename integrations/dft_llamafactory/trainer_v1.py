"""LLaMA-Factory's v1 SFT trainer with our loss: what it counts, computes, checks and logs.

Shapes: B batch, S sequence.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from llamafactory.v1.accelerator.helper import ReduceOp
from llamafactory.v1.accelerator.interface import DistributedInterface
from llamafactory.v1.trainers.sft_trainer import SFTTrainer
from llamafactory.v1.utils.callbacks import TrainerCallback
from llamafactory.v1.utils.helper import get_tokenizer
from torch import Tensor

from dft_llamafactory.recording_v1 import RecorderV1
from dft_plugin.config.hosts import Conflict
from dft_plugin.core.plan import LossPlan
from dft_plugin.core.targets import IGNORE_INDEX
from dft_plugin.errors import ConflictError
from dft_plugin.hf import first_log, switch, tokens, turns
from dft_plugin.hf.attachment import Attachment, attach_plan
from dft_plugin.hf.model import unwrap
from dft_plugin.hf.probabilities import Probabilities
from dft_plugin.hf.startup import startup_line
from dft_plugin.hf.trainer import not_active
from dft_plugin.objectives import Clock
from dft_plugin.runs.probabilities import TRAINING


class LossTrainer(SFTTrainer):  # type: ignore[misc]  # LLaMA-Factory ships no types
    """Trains the model's own answer to labels, which is our loss.

    v1 multiplies what `compute_loss` returns by the labels of the micro-batch, divides it by those of the step and
    sums over ranks. With a mean over the targets, and labels that are nothing but targets, this is the sum over all
    targets of the step divided by their number.

    Attributes:
        attachment: on the model, inside what DDP, FSDP or DeepSpeed wrap around it.
    """

    def __init__(self, plan: LossPlan, model: Any, **given: Any) -> None:
        renderer = given["renderer"]
        read = tokens.read(plan, unwrap(model), renderer.processor, ends_of_answers(renderer))
        if read.problems:
            raise ConflictError(read.problems)
        # Before v1 wraps it.
        self.attachment = attach_plan(model, read.plan)
        self.attachment.ends = read.ends
        self.attachment.trainer_only = True
        if DistributedInterface().get_rank() == 0:
            sys.stderr.write(startup_line(self.attachment, "v1 SFTTrainer", tokens=read.said) + "\n")
        self._recorder = RecorderV1(self.attachment, given["args"])
        super().__init__(model=model, **given)
        self._recorder.follow(self)
        # Ahead of v1's own, which writes the log.
        self.callback_handler.callbacks.insert(0, Statistics(self.attachment, self._recorder.probabilities))

    def compute_loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean over the micro-batch's targets, plus what the model adds to any loss."""
        inputs = {
            key: value.to(self.device, non_blocking=True)
            for key, value in batch.items()
            if isinstance(value, Tensor) and key != "loss_weights"
        }
        # v1 has counted the step that is going on.
        clock = Clock.of_run(self.global_step - 1, self.num_training_steps, float(self.state.epoch))
        if DistributedInterface().get_rank() == 0:
            switch.say(self.attachment.plan, self.attachment.clock, clock)
        self.attachment.clock = clock
        with self.attachment.answering():
            loss: Tensor = self.model(**inputs).loss
        return loss

    def save_model(self) -> None:
        """Save, and write beside it what was trained."""
        super().save_model()
        self._recorder.write(self, self.args.output_dir)

    def _create_batch_generator(self) -> None:
        super()._create_batch_generator()
        self.train_batch_generator: Any = Steps(self.train_batch_generator, self.attachment)

    def _init_optimizer(self) -> None:
        super()._init_optimizer()
        self.optimizer.register_step_pre_hook(self._check_step)

    def _check_step(self, *_: Any) -> None:
        """Stop before the optimizer moves, if a micro-batch was trained with anything else."""
        if self.attachment.calls != self.train_batch_generator.due:
            raise not_active(self.attachment)
        self._recorder.note(self)


class Steps:
    """v1's batch generator, whose labels are targets: v1 counts them, and divides by the count.

    Attributes:
        batches: v1's.
        due: how often our loss has to have been computed at the end of the step that was given out last.
    """

    def __init__(self, batches: Any, attachment: Attachment) -> None:
        self.batches = batches
        self.due = 0
        self._attachment = attachment

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for micro_batches in self.batches:
            self.due = self._attachment.calls + len(micro_batches)
            yield [only_targets(batch) for batch in micro_batches]

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        if name == "batches":
            raise AttributeError(name)
        return getattr(self.batches, name)


def ends_of_answers(renderer: Any) -> list[int]:
    """Return what v1's own template writes after an answer: the first token that is no plain text, or none.

    Args:
        renderer: v1's, of the model that is trained.
    """
    one, other = (_rendered(renderer, answer) for answer in ("yes", "no"))
    if one == other:
        # A tokenizer that knows neither word.
        return []
    alike = [first == second for first, second in zip(reversed(one), reversed(other), strict=False)]
    after = one[len(one) - alike.index(False) :]
    marked = turns.marked(get_tokenizer(renderer.processor)).values()
    return [number for number in after if number in marked][:1]


def _rendered(renderer: Any, answer: str) -> list[int]:
    said = {"user": "is it?", "assistant": answer}
    messages = [{"role": role, "content": [{"type": "text", "value": text}]} for role, text in said.items()]
    ids: list[int] = renderer.render_messages(messages)["input_ids"]
    return ids


def only_targets(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Ignore the labels that are no targets: of weight 0, and at position 0, which no position predicts.

    Raises:
        ConflictError: a target has a weight that is neither 0 nor 1.
    """
    weights_BS, labels_BS = batch["loss_weights"], batch["labels"].clone()
    labels_BS[..., 0] = IGNORE_INDEX
    labels_BS[weights_BS == 0] = IGNORE_INDEX
    others = weights_BS[(labels_BS != IGNORE_INDEX) & (weights_BS != 1)]
    if others.numel():
        raise ConflictError([str(_fractional(float(others[0])))])
    return {**batch, "labels": labels_BS}


def _fractional(weight: float) -> Conflict:
    return Conflict(
        "loss_weight",
        f"the data give a token the weight {weight:g}, and `loss:` weighs tokens by their probability; 0 and 1 are "
        "allowed, which say whether a token is trained.",
        "Set `loss_weight` of each message to 0 or 1, or leave out `loss:`.",
    )


class Statistics(TrainerCallback):  # type: ignore[misc]  # LLaMA-Factory ships no types
    """Puts `dft/*` beside the loss, and counts into their file: of all micro-batches and ranks since the last log."""

    def __init__(self, attachment: Attachment, probabilities: Probabilities) -> None:
        self._attachment = attachment
        self._probabilities = probabilities
        self._warned = False

    def on_log(self, args: Any, state: Any, logs: dict[str, Any], **_: Any) -> None:
        """Add them to what v1 logs. v1 calls it on every rank."""
        stats = self._attachment.drain(training=True).reduce(_all_sum).read()
        self._probabilities.add(TRAINING, stats, state.global_step)
        found = stats.as_logs()
        logs.update(found)
        plan, clock = self._attachment.plan, self._attachment.clock
        logs.update(plan.logs(clock))
        if not self._warned:
            self._warned = first_log.warn(found, plan, clock)

    def on_train_end(self, args: Any, state: Any, **_: Any) -> None:
        """Write what is written of the end."""
        self._probabilities.end()


def _all_sum(sums_K: Tensor) -> Tensor:
    reduced: Tensor = DistributedInterface().all_reduce(sums_K, op=ReduceOp.SUM)
    return reduced
