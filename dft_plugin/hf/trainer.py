"""TrainerHook: what every Hugging Face Trainer needs so that an attached loss is right, seen and never off."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Trainer

from dft_plugin.core.targets import IGNORE_INDEX
from dft_plugin.errors import NotActiveError
from dft_plugin.hf.attachment import Attachment
from dft_plugin.hf.standing import name_of

logger = logging.getLogger(__name__)

WEAK_PRIOR = 0.1
"""Mean target probability below which plain likelihood tends to train better (arXiv 2510.00526)."""


class TrainerHook:
    """Wraps methods of one trainer instance around an attachment.

    Subclassed by hosts whose trainers compute the loss in a way of their own.

    Attributes:
        trainer: the trainer.
        attachment: on the trainer's model.
        replaced: the trainer's settings that were changed, in words, for the start-up line.
    """

    attachment_class: ClassVar[type[Attachment]] = Attachment

    def __init__(self, trainer: Trainer, attachment: Attachment) -> None:
        self.trainer = trainer
        self.attachment = attachment
        self.replaced: list[str] = []
        self._warned = False
        # The trainer's own methods, which ours wrap.
        self._compute_loss: Callable[..., Any] = trainer.compute_loss
        self._training_step: Callable[..., Any] = trainer.training_step
        self._prediction_step: Callable[..., Any] = trainer.prediction_step
        self._log: Callable[..., Any] = trainer.log

    @classmethod
    def conflicts(cls, trainer: Trainer) -> list[str]:
        """List what would bypass the loss: each with what to change. Called before anything is touched."""
        args = trainer.args
        problems = []
        if isinstance(getattr(trainer.compute_loss, "__self__", None), TrainerHook):
            problems.append("a loss is active on this trainer already. Make a new trainer to change it.")
        if trainer.compute_loss_func is not None:
            problems.append("compute_loss_func is set, and it would replace our loss. Drop it, or leave out `loss:`.")
        if args.label_smoothing_factor:
            problems.append(
                f"label_smoothing_factor is {args.label_smoothing_factor}: the Trainer takes the labels from the "
                "model and trains smoothed cross-entropy. Set it to 0."
            )
        if args.n_gpu > 1:
            problems.append(
                f"nn.DataParallel over {args.n_gpu} GPUs runs replicas that do not carry the loss. Start one process "
                "per GPU (accelerate launch, torchrun), or set CUDA_VISIBLE_DEVICES to one GPU."
            )
        if getattr(args, "use_liger_kernel", False) and _liger_takes_forward(args.liger_kernel_config):
            problems.append(
                "use_liger_kernel replaces the model's forward when training starts. Keep its layer kernels with "
                "liger_kernel_config: {fused_linear_cross_entropy: false}."
            )
        parallelism = getattr(trainer.accelerator, "parallelism_config", None)
        if getattr(parallelism, "sp_enabled", False):
            problems.append(
                "sequence parallelism (Ulysses/ALST) reduces the loss of each shard by itself, which was never run "
                "with ours. Turn it off, or use context parallelism."
            )
        if trainer.model_init is not None:
            problems.append("model_init makes a new model when training starts. Pass `model` instead.")
        return problems

    def install(self) -> None:
        """Wrap the trainer's methods and set what the token count needs."""
        self.attachment.trainer_only = True
        self.count_tokens()
        for name in ("compute_loss", "training_step", "prediction_step", "log"):
            setattr(self.trainer, name, getattr(self, name))

    def count_tokens(self) -> None:
        """Let `num_items_in_batch` count the target tokens of the step, and reach the model."""
        trainer: Any = self.trainer
        trainer.model_accepts_loss_kwargs = True
        if trainer.args.world_size > 1 and not trainer.args.average_tokens_across_devices:
            trainer.args.average_tokens_across_devices = True
            self.replaced.append("average_tokens_across_devices")
        if hasattr(trainer, "_loss_shifts_labels"):
            trainer._loss_shifts_labels = True
        else:
            # Before transformers 5.16 the count includes position 0, which no position predicts.
            trainer.data_collator = _WithoutFirstLabel(trainer.data_collator)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Answer with our loss: the trainer's own call, and nobody else's."""
        with self.attachment.answering():
            return self._compute_loss(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run a step, and stop the run if our loss was not computed in it."""
        calls = self.attachment.calls
        loss = self._training_step(*args, **kwargs)
        if self.attachment.calls == calls:
            raise not_active(self.attachment)
        return loss

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, *args: Any, **kwargs: Any) -> Any:
        """Evaluate; logits are made only where somebody reads them."""
        inputs = self._without_repeats(inputs)
        with self.attachment.answering(want_logits=not prediction_loss_only):
            return self._prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)

    def _without_repeats(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Mask the rows that accelerate repeats to fill the last batch of every rank.

        The Trainer cuts them off after gathering; statistics are summed up before that.
        """
        state = self.trainer.accelerator.gradient_state
        labels = inputs.get("labels")
        if not (state.end_of_dataloader and state.remainder > 0) or not isinstance(labels, Tensor):
            return inputs
        rows = labels.shape[0]
        real = state.remainder - rows * self.trainer.accelerator.process_index
        if real >= rows:
            return inputs
        labels = labels.clone()
        labels[max(real, 0) :] = IGNORE_INDEX
        return {**inputs, "labels": labels}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
        """Put `dft/*` beside the loss, `eval_dft/*` beside an evaluation's. Every rank must call it."""
        prefix = _prefix_of(logs)
        if prefix is not None:
            logs.update(self.drain_logs(prefix))
        return self._log(logs, *args, **kwargs)

    def drain_logs(self, prefix: str) -> dict[str, float]:
        """Return the statistics since the last log, reduced over ranks."""
        stats = self.attachment.drain(training=not prefix).reduce(self._all_sum)
        logs = stats.as_logs(prefix)
        if not prefix and logs and not self._warned:
            self._warned = True
            warn_of_weak_prior(logs, self.attachment.plan.objective.name)
        return logs

    def _all_sum(self, sums_K: Tensor) -> Tensor:
        accelerator = self.trainer.accelerator
        reduced: Tensor = accelerator.reduce(sums_K.to(accelerator.device), reduction="sum")
        # Tensor-parallel ranks score the same tokens.
        copies = getattr(getattr(accelerator, "parallelism_config", None), "tp_size", 1)
        return reduced / copies


def is_trainer(trainer: object) -> bool:
    """Say whether `trainer` is a `transformers.Trainer`."""
    return isinstance(trainer, Trainer)


def not_active(attachment: Attachment) -> NotActiveError:
    """Return the error for a training step in which our loss was not computed."""
    return NotActiveError(
        "a training step ended without the loss that `loss:` asks for: something took over the model's "
        f"forward (it is now {name_of(attachment.model.forward)}) or computed a loss without labels in "
        "the forward. Nothing was updated in this step. Disable it (Liger, Unsloth, a custom compute_loss), "
        "or leave out `loss:`."
    )


def warn_of_weak_prior(logs: Mapping[str, float], objective: str) -> None:
    """Warn where the first logged statistics say that plain likelihood tends to train better."""
    if logs["dft/mean_prob"] < WEAK_PRIOR and objective != "nll":
        logger.warning(
            "dft: the targets' mean probability is %.3f in the first steps. Below %s the model's prior is "
            "weak, and plain SFT (`loss: nll`) often trains better. See docs/when-not-to-use.md.",
            logs["dft/mean_prob"],
            WEAK_PRIOR,
        )


class _WithoutFirstLabel:
    """A collator whose labels never count position 0, which no position predicts."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, features: Any) -> Any:
        batch = self.collator(features)
        labels = batch.get("labels")
        if isinstance(labels, torch.Tensor) and "shift_labels" not in batch:
            labels[..., 0] = IGNORE_INDEX
        return batch

    def __getattr__(self, name: str) -> Any:
        if name == "collator":
            raise AttributeError(name)
        return getattr(self.collator, name)


def _liger_takes_forward(config: Mapping[str, Any] | None) -> bool:
    config = config or {}
    return bool(config.get("fused_linear_cross_entropy", True))


def _prefix_of(logs: Mapping[str, float]) -> str | None:
    """Return "" for a training log, `eval_` or the like for an evaluation's, None for any other."""
    if "loss" in logs:
        return ""
    for key in logs:
        if key.endswith("_loss") and key != "train_loss":
            return key.removesuffix("loss")
    return None
