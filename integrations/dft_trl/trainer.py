"""SFTTrainer: it asks the model for a fused LM head's output and sums that up itself. We answer.

Shapes: B batch, S sequence, T scored tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from dft_plugin.hf.attachment import Attachment
from dft_plugin.hf.passes import Pass
from dft_plugin.hf.trainer import TrainerHook


class TrlAttachment(Attachment):
    """Answers `model(..., fused_lm_head=True)`, the call of `SFTTrainer.compute_loss`."""

    def answer(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return TRL's own output class, its `log_probs` such that their negative sum is our loss sum."""
        inputs = self.named(args, kwargs)
        if not inputs.get("fused_lm_head") or not self.answers(inputs):
            return super().answer(module, args, kwargs)
        del inputs["fused_lm_head"]
        return _fused_output(self.score(module, inputs, want_logits=False))


class TrlHook(TrainerHook):
    """TRL divides, scales over ranks and adds the router's loss by itself; we leave that to it."""

    attachment_class: ClassVar[type[Attachment]] = TrlAttachment

    def install(self) -> None:
        """Let TRL sum our losses as they are, with the statistics that its metrics need."""
        super().install()
        args: Any = self.trainer.args
        if args.loss_type != "nll":
            # TRL would multiply by p once more.
            self.replaced.append(f"loss_type: {args.loss_type}")
            args.loss_type = "nll"
        plan = self.attachment.plan
        self.attachment.plan = replace(plan, needs=plan.needs | {"entropy"})


def _fused_output(done: Pass) -> FusedCausalLMOutput:
    rows, mask_BS = done.result.rows, done.scored_BS
    weight_T = done.result.weight_T
    loss_T = torch.where(weight_T > 0, -weight_T * rows.logp_T, torch.zeros_like(weight_T))
    assert rows.entropy_T is not None
    loss = done.result.mean()
    spread: Tensor = _Spread.apply(done.result.loss_sum, _grid(loss_T, mask_BS))  # type: ignore[no-untyped-call]
    return FusedCausalLMOutput(
        loss=loss if done.auxiliary is None else loss + done.auxiliary,
        log_probs=-spread,
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
