"""ms-swift's SFT trainer: it makes shares of the means of micro-batches; its `token_acc` is of what we scored.

Shapes: B batch, S sequence, T scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from swift.template import Template
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from dft_plugin.config import rules
from dft_plugin.config.handover import swapped
from dft_plugin.config.hosts import Conflict
from dft_plugin.core.loss import LossResult, NumItems, normalise
from dft_plugin.core.plan import LossPlan
from dft_plugin.core.stats import Tally
from dft_plugin.hf.counting import averaging_processes, with_number_of_items
from dft_plugin.hf.loss_calls import TrainerAttachment
from dft_plugin.hf.passes import Pass
from dft_plugin.hf.trainer import TrainerHook
from dft_plugin.hf.wrapping import wrapped
from dft_swift import conflicts

HINT = "ms-swift's templates encode rows without them. Choose a loss that reads no column."

_SAID_TWICE = {"loss_type": "compute_loss_func", "use_liger_kernel": "use_liger_kernel"}
"""Keys of ms-swift, and what the plain Trainer's hook calls the same thing."""


class SwiftAttachment(TrainerAttachment):
    """Answers with the mean of a micro-batch, and keeps the last pass, of which the accuracy is made.

    Attributes:
        last: that, where it made no logits; None: nothing was scored since somebody took it.
    """

    def __init__(self, model: PreTrainedModel, plan: LossPlan) -> None:
        super().__init__(model, plan)
        self.last: Pass | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "last": None}

    def score(self, module: Any, inputs: dict[str, Any], want_logits: bool, unnamed: tuple[Any, ...] = ()) -> Pass:
        """Run and score, and keep what was scored."""
        done = super().score(module, inputs, want_logits, unnamed)
        self.last = None if want_logits else done
        return done

    def take_last(self) -> Pass | None:
        """Return the last pass, and let go of it."""
        last, self.last = self.last, None
        return last

    def mean(self, result: LossResult, num_items: NumItems) -> Tensor:
        """Divide by the targets of the micro-batch, also where more than tokens will divide in the end."""
        if self._answering is not None and self._answering.rescaling is not None:
            return normalise(result.loss_sum, result.count)
        return super().mean(result, num_items)


class SwiftHook(TrainerHook):
    """Reads ms-swift's arguments and its template; the rest is the plain Trainer's."""

    attachment_class: ClassVar[type[TrainerAttachment]] = SwiftAttachment
    columns_hint: ClassVar[str] = HINT

    @classmethod
    def conflicts(cls, trainer: Trainer) -> list[str]:
        """Check ms-swift's arguments as they were parsed, and what its template came to, whoever made the trainer."""
        made: Any = trainer
        template = made.template
        config = {
            **vars(made.args),
            "task_type": template.task_type,
            "sequence_parallel_size": template.sequence_parallel_size,
        }
        found = [*rules.find(conflicts.RULES, config), *_of_template(template)]
        twice = [_SAID_TWICE.get(one.key, one.key) for one in found]
        others = [said for said in super().conflicts(trainer) if not said.startswith(tuple(twice))]
        return [*map(str, found), *others]

    @classmethod
    def without_boundaries(cls, trainer: Trainer) -> list[str]:
        """A model that sees has positions of several axes, which need not begin anew with each example."""
        made: Any = trainer
        if not (made.template.padding_free and made.model_meta.is_multimodal):
            return []
        return [
            "`packing` (or `padding_free`) of a model that sees: nothing says where an example ends, and this loss "
            "looks at whole sequences. Set both to false."
        ]

    @classmethod
    def ends(cls, trainer: Trainer) -> Sequence[int]:
        """Return what ms-swift's own template ends an answer with; the tokenizer's may be another one."""
        made: Any = trainer
        number = getattr(made.template.template_meta, "stop_token_id", None)
        return () if number is None else (number,)

    def install(self) -> None:
        """Have whole labels given to the model: what is no target costs us nothing."""
        super().install()
        args: Any = self.trainer.args
        if args.use_logits_to_keep:
            self.replaced.append("use_logits_to_keep")
        self.change(args, "use_logits_to_keep", False)

    @wrapped
    def compute_loss(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss, and the accuracy for which ms-swift would need the logits."""
        # The base's finds it by itself.
        del inner
        attachment = self.attachment
        assert isinstance(attachment, SwiftAttachment)
        attachment.take_last()
        loss = super().compute_loss(*args, **kwargs)
        done = attachment.take_last()
        if done is not None:
            self._count_hits(done)
        return loss

    def compute_training_loss(
        self, inner: Callable[..., Any], count: Tensor, tally: Tally, *args: Any, **kwargs: Any
    ) -> Any:
        """Hand ms-swift the number of targets of the whole step; it makes a share of it of each micro-batch's mean."""
        divisor = count / averaging_processes(self.trainer) / self.divided_later(args, kwargs)
        args, kwargs = with_number_of_items(divisor, args, kwargs)
        with (
            self.attachment.loss_call(grad=torch.is_grad_enabled(), tally=tally),
            # The ranks are in the divisor.
            swapped(self.trainer.args, "average_tokens_across_devices", False),
        ):
            return inner(*args, **kwargs)

    def _count_hits(self, done: Pass) -> None:
        """Add to `token_acc`, or to `seq_acc`, as ms-swift does."""
        trainer = self.trainer
        strategy = trainer.args.acc_strategy
        if strategy == "seq" and trainer.template.padding_free:
            # Where a sequence ends, ms-swift reads off the positions.
            return
        hits_T = done.result.scored.rows.is_top1_T
        if strategy == "seq":
            hits_T = _all_right(hits_T, done.result.selection.mask(hits_T.device))
        if hits_T.numel():
            mode = "train" if trainer.model.training else "eval"
            trainer.custom_metrics[mode][f"{strategy}_acc"].update(hits_T)


def _of_template(template: Any) -> list[Conflict]:
    """List what of a template no argument shows."""
    found = []
    scale = template.loss_scale
    binary = template.is_binary_loss_scale
    if binary is None and not scale.is_binary_loss_scale:
        found.append(conflicts.LOSS_SCALE.conflict({"loss_scale": type(scale).__name__}))
    elif binary is False:
        found.append(conflicts.IS_BINARY.conflict({"is_binary_loss_scale": False}))
    if type(template).compute_sft_loss is not Template.compute_sft_loss:
        found.append(conflicts.TEMPLATE.conflict({"template": type(template).__name__}))
    return found


def _all_right(hits_T: Tensor, mask_BS: Tensor) -> Tensor:
    """Return for each row with a target whether all of them were hit."""
    missed_BS = torch.zeros_like(mask_BS).masked_scatter(mask_BS, ~hits_T)
    return ~missed_BS.any(1)[mask_BS.any(1)]
