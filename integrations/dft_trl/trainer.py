"""SFTTrainer: it asks the model for a fused LM head's output and sums that up itself. We answer.

Shapes: B batch, S sequence, T scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from dft_plugin.config.handover import swapped
from dft_plugin.core.plan import LossPlan
from dft_plugin.core.stats import Tally
from dft_plugin.errors import ConflictError
from dft_plugin.hf.carrying import columns_of
from dft_plugin.hf.counting import averaging_processes, with_number_of_items
from dft_plugin.hf.loss_calls import TrainerAttachment
from dft_plugin.hf.passes import Pass
from dft_plugin.hf.trainer import TrainerHook
from dft_plugin.hf.wrapping import wrapped
from dft_trl.columns import HINT, prepared


class TrlAttachment(TrainerAttachment):
    """Answers `model(..., fused_lm_head=True)`, the call of `SFTTrainer.compute_loss`.

    Attributes:
        watched: whether to keep the last answer, so that somebody can ask what was made of it.
        last: that.
    """

    def __init__(self, model: PreTrainedModel, plan: LossPlan) -> None:
        super().__init__(model, plan)
        self.watched = False
        self.last: FusedCausalLMOutput | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "watched": False, "last": None}

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
        if self.watched:
            self.last = output
        return output


class TrlHook(TrainerHook):
    """TRL divides, scales over ranks and adds the router's loss by itself; we leave that to it."""

    attachment_class: ClassVar[type[TrainerAttachment]] = TrlAttachment
    columns_hint: ClassVar[str] = HINT
    _passes_on = False

    @classmethod
    def without_boundaries(cls, trainer: Any) -> list[str]:
        """Wrapped packing lays examples end to end, and cuts them where a row is full."""
        if not (trainer.args.packing and trainer.args.packing_strategy == "wrapped"):
            return []
        return [
            "`packing_strategy: wrapped` says nowhere where an example ends, and this loss looks at whole sequences. "
            "Set `packing_strategy: bfd`."
        ]

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
        columns = columns_of(self.plan)
        return prepared(self.trainer, columns, inner, *args, **kwargs) if columns else inner(*args, **kwargs)

    def compute_training_loss(
        self, inner: Callable[..., Any], count: Tensor, tally: Tally, *args: Any, **kwargs: Any
    ) -> Any:
        """Hand TRL the number of targets of the whole step, by which it divides."""
        attachment = self.attachment
        assert isinstance(attachment, TrlAttachment)
        steps = self.divided_later(args, kwargs)
        divisor = count / averaging_processes(self.trainer) / steps
        number = (count / steps).detach()
        own = type(self.trainer).compute_loss is SFTTrainer.compute_loss
        attachment.watched = not own and not self._passes_on
        if attachment.watched:
            # Whether the loss was divided by it, the graph will tell, whatever the values are.
            number.requires_grad_()
        args, kwargs = with_number_of_items(number, args, kwargs)
        with (
            attachment.loss_call(grad=torch.is_grad_enabled(), tally=tally, num_items=divisor),
            swapped(self.trainer.args, "average_tokens_across_devices", True),
        ):
            loss = inner(*args, **kwargs)
        answer, attachment.last = attachment.last, None
        if answer is not None:
            self._check_divisor(loss[0] if isinstance(loss, tuple) else loss, answer, number, float(divisor))
        return loss

    def _check_divisor(self, loss: Tensor, answer: FusedCausalLMOutput, number: Tensor, divisor: float) -> None:
        """Stop where a `compute_loss` calls TRL's without the count, so that TRL divides by the micro-batch's."""
        assert answer.log_probs is not None
        assert answer.label_mask is not None
        found_gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
            loss, (answer.log_probs, number), retain_graph=True, allow_unused=True
        )
        gradient, by_number = found_gradients
        if by_number is not None:
            self._passes_on = True
        micro_batch = int(answer.label_mask.sum())
        if by_number is not None or gradient is None or micro_batch == 0:
            return
        found = -float(1 / gradient.reshape(-1)[0])
        # One micro-batch may be the whole step, or the count be passed on as a number: that is as good, this time.
        if abs(found - divisor) < 0.001 * divisor or abs(micro_batch - divisor) < 0.001 * divisor:
            return
        raise ConflictError(
            [
                f"{type(self.trainer).__name__}.compute_loss calls SFTTrainer's without num_items_in_batch: the loss "
                f"of a micro-batch of {micro_batch} targets was divided by {found:.6g}, that of the step's "
                f"{divisor:.6g} is not in it, and steps would depend on how a batch is split. Pass "
                "num_items_in_batch on as it was given."
            ]
        )


def _fused_output(done: Pass, factor: Tensor | None) -> FusedCausalLMOutput:
    scored = done.result.scored
    rows = scored.rows
    mask_BS = done.result.selection.mask(rows.logp_T.device)
    assert rows.entropy_T is not None
    loss = done.result.mean()
    spread: Tensor = _Spread.apply(done.result.loss_sum, _grid(scored.loss_T, mask_BS))  # type: ignore[no-untyped-call]
    return FusedCausalLMOutput(
        loss=loss if done.auxiliary is None else loss + done.auxiliary,
        log_probs=-spread if factor is None else -spread * factor.to(spread),
        entropy=_grid(rows.entropy_T, mask_BS),
        is_top1=_grid(rows.is_top1_T, mask_BS),
        label_mask=mask_BS,
        aux_loss=done.output.get("aux_loss"),
    )


def _grid(values_T: Tensor, mask_BS: Tensor) -> Tensor:
    return values_T.new_zeros(mask_BS.shape).masked_scatter(mask_BS, values_T)


class _Spread(torch.autograd.Function):
    """Values per token whose sum has the gradient of `loss_sum`.

    TRL sums the values up, so each gets the same upstream gradient, and that is the one of the sum.
    """

    @staticmethod
    def forward(ctx: Any, loss_sum: Tensor, values_BS: Tensor) -> Tensor:
        return values_BS.clone()

    @staticmethod
    def backward(ctx: Any, upstream_BS: Tensor) -> tuple[Tensor, None]:
        return upstream_BS.reshape(-1)[0], None
