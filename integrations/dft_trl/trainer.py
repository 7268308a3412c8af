"""SFTTrainer: it asks the model for a fused LM head's output and sums that up itself. We answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from trl import SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from dft_plugin.config.handover import swapped
from dft_plugin.config.rules import find
from dft_plugin.core import positions
from dft_plugin.core.stats import Tally
from dft_plugin.hf.carrying import columns_of
from dft_plugin.hf.counting import averaging_processes, with_number_of_items
from dft_plugin.hf.division import passes_on
from dft_plugin.hf.loss_calls import TrainerAttachment
from dft_plugin.hf.passes import Pass
from dft_plugin.hf.trainer import TrainerHook
from dft_plugin.hf.wrapping import wrapped
from dft_trl.columns import HINT, prepared
from dft_trl.conflicts import BOUNDARY_RULES


class TrlAttachment(TrainerAttachment):
    """Answers `model(..., fused_lm_head=True)`, the call of `SFTTrainer.compute_loss`.

    Attributes:
        seen: gets the answers, for somebody who asks what was made of them; None: nobody does.
    """

    seen: list[Any] | None = None

    def answer(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return TRL's own output class, its `log_probs` such that their negative sum is our loss sum."""
        inputs = self.named(args, kwargs)
        if not inputs.get("fused_lm_head") or not self.answers(inputs):
            return super().answer(module, args, kwargs)
        del inputs["fused_lm_head"]
        done = self.score(module, inputs, want_logits=False)
        later = self._answering is not None and self._answering.rescaling is not None
        by_tokens = later or done.result.objective.divisor == "tokens"
        output = _fused_output(done, None if by_tokens else done.result.factor)
        if self.seen is not None:
            self.seen.append(output)
        return output


class TrlHook(TrainerHook):
    """TRL divides, scales over ranks and adds the router's loss by itself; we leave that to it."""

    attachment_class: ClassVar[type[TrainerAttachment]] = TrlAttachment
    columns_hint: ClassVar[str] = HINT
    names_loss: ClassVar[Sequence[str]] = ("loss_type",)
    _passes_on = False

    @classmethod
    def without_boundaries(cls, trainer: Any) -> list[str]:
        """Wrapped packing lays examples end to end, and cuts them where a row is full."""
        return [str(one) for one in find(BOUNDARY_RULES, vars(trainer.args), "{key}: {value}")]

    def install(self) -> None:
        """Let TRL sum our losses as they are, with the statistics that its metrics need."""
        super().install()
        args: Any = self.trainer.args
        if args.loss_type != "nll":
            # TRL would multiply by p once more.
            self.replaced.append(f"loss_type: {args.loss_type}")
            self.change(args, "loss_type", "nll")
        # A mean of means otherwise; TRL passes nothing on to the model, whatever this says.
        self.change(self.trainer, "model_accepts_loss_kwargs", True)
        plan = self.attachment.plan
        self.attachment.plan = replace(plan, needs=plan.needs | {"entropy"})

    @wrapped
    def _prepare_dataset(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Prepare a dataset that `evaluate` is given as those were that the trainer was made with."""
        return prepared(self.trainer, columns_of(self.plan), inner, *args, **kwargs)

    def compute_training_loss(
        self, inner: Callable[..., Any], count: Tensor, tally: Tally, *args: Any, **kwargs: Any
    ) -> Any:
        """Hand TRL the number of targets of the whole step, by which it divides."""
        steps = self.divided_later(args, kwargs)
        divisor = count / averaging_processes(self.trainer) / steps
        number, seen = (count / steps).detach(), list[Any]()
        watched = type(self.trainer).compute_loss is not SFTTrainer.compute_loss and not self._passes_on
        if watched:
            # Whether the loss was divided by it, the graph will tell, whatever the values are.
            number.requires_grad_()
        args, kwargs = with_number_of_items(number, args, kwargs)
        with (
            self.attachment.loss_call(grad=torch.is_grad_enabled(), tally=tally, num_items=divisor),
            swapped(self.trainer.args, "average_tokens_across_devices", True),
            swapped(self.attachment, "seen", seen if watched else None),
        ):
            loss = inner(*args, **kwargs)
        if seen:
            whole, answer = loss[0] if isinstance(loss, tuple) else loss, seen[-1]
            targets = int(answer.label_mask.sum())
            self._passes_on = passes_on(
                self.trainer, SFTTrainer, whole, answer.log_probs, number, targets, float(divisor)
            )
        return loss


def _fused_output(done: Pass, factor: Tensor | None) -> FusedCausalLMOutput:
    result, rows = done.result, done.result.scored.rows
    mask_BS, losses_BS = positions.mask(result), positions.losses(result)
    assert rows.entropy_T is not None
    loss = result.mean()
    return FusedCausalLMOutput(
        loss=loss if done.auxiliary is None else loss + done.auxiliary,
        log_probs=-losses_BS if factor is None else -losses_BS * factor.to(losses_BS),
        entropy=positions.place(rows.entropy_T, mask_BS),
        is_top1=positions.place(rows.is_top1_T, mask_BS),
        label_mask=mask_BS,
        aux_loss=done.output.get("aux_loss"),
    )
