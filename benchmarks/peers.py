"""What others compute: each peer's own code, called the way its host calls it.

A peer is loaded when it is measured; one that cannot be imported or run becomes a row that says why.
Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problem import HiddenInputs, LogitsInputs
from dft_plugin.core.targets import IGNORE_INDEX

LogitsLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits [N, V] and aligned labels [N] to the mean loss."""

CHUNK_ROWS = 256
"""For torch's fused loss: its default chooses so few rows on a CPU that the products are bound by memory."""


def weighted_mean(nll_N: Tensor, labels_N: Tensor) -> Tensor:
    """Compose the DFT loss from a per-token cross-entropy, as the paper's line does."""
    return (nll_N * torch.exp(-nll_N).detach()).sum() / (labels_N != IGNORE_INDEX).sum()


def sft() -> LogitsLoss:
    """Plain cross-entropy on float32 logits, as transformers computes it."""
    return lambda logits_NV, labels_N: F.cross_entropy(logits_NV.float(), labels_N, ignore_index=IGNORE_INDEX)


def one_liner() -> LogitsLoss:
    """The line of the paper's repository: `loss * softmax(logits).gather(labels).detach()`."""

    def loss(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
        logits_NV = logits_NV.float()
        nll_N = F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE_INDEX, reduction="none")
        targets_N1 = labels_N.clamp(min=0)[:, None]
        p_N = torch.softmax(logits_NV, dim=-1).gather(1, targets_N1)[:, 0].detach()
        return (nll_N * p_N).sum() / (labels_N != IGNORE_INDEX).sum()

    return loss


def llama_factory() -> LogitsLoss:
    """LLaMA-Factory's `dft_loss_func`, from the installed package."""
    with mock.patch.dict(os.environ, DISABLE_VERSION_CHECK="1"):
        import trl

        # It imports a class that TRL has moved since, and needs it for reward models only.
        if not hasattr(trl, "AutoModelForCausalLMWithValueHead"):
            trl.AutoModelForCausalLMWithValueHead = object
        from llamafactory.train.trainer_utils import dft_loss_func

    def loss(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
        return dft_loss_func({"logits": logits_NV[None]}, labels_N.roll(1)[None])

    return loss


def ms_swift() -> LogitsLoss:
    """ms-swift's `per_token_loss_func`, summed and divided as its trainer does."""
    from swift.trainers.utils import per_token_loss_func

    def loss(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
        outputs = SimpleNamespace(logits=logits_NV[None])
        loss_N = per_token_loss_func(outputs, labels_N.roll(1)[None], enable_dft_loss=True)
        return loss_N.sum() / (labels_N != IGNORE_INDEX).sum()

    return loss


def compiled(load: Callable[[], LogitsLoss]) -> LogitsLoss:
    """The same through `torch.compile`."""
    function: LogitsLoss = torch.compile(load(), dynamic=False)
    return function


def compiled_on_hidden(load: Callable[[], LogitsLoss]) -> Callable[[HiddenInputs], Tensor]:
    """Projection and loss through `torch.compile`, in one piece."""
    loss = load()
    projected = torch.compile(
        lambda hidden_NH, weight_VH, labels_N: loss(hidden_NH @ weight_VH.t(), labels_N), dynamic=False
    )
    return lambda inputs: projected(_one_weight(inputs).hidden_NH, inputs.weight_VH, inputs.labels_N)


def on_hidden(load: Callable[[], LogitsLoss]) -> Callable[[HiddenInputs], Tensor]:
    """Materialise the logits, and apply a loss on them."""
    loss = load()
    return lambda inputs: loss(inputs.logits(), inputs.labels_N)


def on_logits(load: Callable[[], LogitsLoss]) -> Callable[[LogitsInputs], Tensor]:
    """Apply a loss to logits that exist."""
    loss = load()
    return lambda inputs: loss(inputs.logits_NV, inputs.labels_N)


class _TrlModel:
    """What TRL asks of a model: a backbone that hands out hidden states, and a head."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())
        self.inputs: Any = None

    def forward(self) -> None:
        """TRL replaces it."""

    def base_model(self, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.inputs.hidden_NH[None])

    def get_output_embeddings(self) -> SimpleNamespace:
        return SimpleNamespace(weight=self.inputs.weight_VH, bias=None)


def trl() -> Callable[[HiddenInputs], Tensor]:
    """TRL's fused head with the outputs that SFTTrainer asks for, and its lines for `loss_type: dft`."""
    from trl.trainer.utils import add_fused_lm_head

    model: Any = _TrlModel()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))

    def loss(inputs: HiddenInputs) -> Tensor:
        model.inputs = _one_weight(inputs)
        outputs = model.forward(shift_labels=inputs.labels_N[None], fused_lm_head=True)
        per_token_loss = -outputs.log_probs * outputs.log_probs.exp().detach()
        return per_token_loss.sum() / outputs.label_mask.sum().clamp(min=1)

    return loss


def liger() -> Callable[[HiddenInputs], Tensor]:
    """Liger's fused per-token cross-entropy; without a GPU that it knows, its PyTorch fallback."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    def loss(inputs: HiddenInputs) -> Tensor:
        _one_weight(inputs)
        nll_N = LigerFusedLinearScaledCrossEntropyFunction.apply(inputs.hidden_NH, inputs.weight_VH, inputs.labels_N)
        return weighted_mean(nll_N, inputs.labels_N)

    return loss


def liger_sft() -> Callable[[HiddenInputs], Tensor]:
    """Liger's fused linear cross-entropy, as its patched models call it; plain cross-entropy."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    def loss(inputs: HiddenInputs) -> Tensor:
        _one_weight(inputs)
        out = LigerFusedLinearCrossEntropyFunction.apply(inputs.hidden_NH, inputs.weight_VH, inputs.labels_N)
        return out[0] if isinstance(out, tuple) else out

    return loss


def quack() -> Callable[[HiddenInputs], Tensor]:
    """Quack's chunked linear cross-entropy; plain cross-entropy."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    def loss(inputs: HiddenInputs) -> Tensor:
        _one_weight(inputs)
        return chunked_linear_cross_entropy(
            inputs.hidden_NH, inputs.weight_VH, inputs.labels_N, ignore_index=IGNORE_INDEX, reduction="mean"
        )

    return loss


def cce() -> Callable[[HiddenInputs], Tensor]:
    """Cut cross-entropy per token: its kernel on a GPU, its compiled form elsewhere."""
    from cut_cross_entropy import linear_cross_entropy

    def loss(inputs: HiddenInputs) -> Tensor:
        _one_weight(inputs)
        impl = "cce" if inputs.shape.device == "cuda" else "torch_compile"
        nll_N = linear_cross_entropy(
            inputs.hidden_NH, inputs.weight_VH, inputs.labels_N, reduction="none", impl=impl
        ).float()
        return weighted_mean(nll_N, inputs.labels_N)

    return loss


def torch_fused(reduction: str) -> Callable[[HiddenInputs], Tensor]:
    """Torch's `linear_cross_entropy`: `none` composes DFT, `mean` is plain cross-entropy."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK_ROWS, chunking_method=None)

    def loss(inputs: HiddenInputs) -> Tensor:
        _one_weight(inputs)
        out = F.linear_cross_entropy(
            inputs.hidden_NH, inputs.weight_VH, inputs.labels_N, reduction=reduction, options=options
        )
        return out if reduction == "mean" else weighted_mean(out.float(), inputs.labels_N)

    return loss


def _one_weight(inputs: HiddenInputs) -> HiddenInputs:
    if inputs.shape.rank:
        raise NotImplementedError("takes one weight, so LoRA on the head means a merged copy of it")
    return inputs
