"""Facts about Hugging Face models that the attachment needs."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from dft_plugin.errors import UnsupportedModelError

_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside `torch.compile` and PEFT wrappers.

    Raises:
        UnsupportedModelError: the model is wrapped for several devices already.
    """
    if type(model).__name__ in _WRAPPERS:
        raise UnsupportedModelError(
            f"the model is wrapped in {type(model).__name__}. Attach the loss first, then wrap the model."
        )
    model = getattr(model, "_orig_mod", model)
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(model, peft.PeftModel):
        model = model.get_base_model()
    return model


def require_causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return `model`, or raise `UnsupportedModelError` unless it is a decoder-only language model."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{name} is no transformers PreTrainedModel. For a model of your own use "
            "dft_plugin.linear_token_loss or dft_plugin.token_loss."
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder, whose labels are not shifted; only causal language models are supported."
        )
    if not _is_causal_lm(model):
        raise UnsupportedModelError(
            f"{name} is no causal language model; its loss is not the likelihood of the next token."
        )
    return model


def _is_causal_lm(model: PreTrainedModel) -> bool:
    mapped = {
        *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
        *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values(),
    }
    names = {cls.__name__ for cls in type(model).__mro__}
    return bool(names & mapped) or getattr(model, "loss_type", None) == "ForCausalLM"


def eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """Token ids that end a sequence, as the generation config or the config says."""
    for config in (getattr(model, "generation_config", None), model.config):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return tuple(ids) if isinstance(ids, (list, tuple)) else (ids,)
    return ()


def auxiliary_loss(model: PreTrainedModel, output: Any) -> Tensor | None:
    """Return the scaled auxiliary loss of an output that was made without labels.

    A model adds its router's loss only where it computes a loss itself; this is for forwards that
    replace the model's (Liger, Cut Cross-Entropy) and do not ask for `loss_function`.

    Raises:
        UnsupportedModelError: there is an auxiliary loss, but no coefficient of a known name.
    """
    auxiliary: Tensor | None = output.get("aux_loss")
    if auxiliary is None:
        return None
    for holder in (model, model.config.get_text_config()):
        for name in ("router_aux_loss_coef", "aux_loss_coef"):
            coefficient = getattr(holder, name, None)
            if coefficient is not None:
                scaled: Tensor = coefficient * auxiliary
                return scaled
    raise UnsupportedModelError(
        f"{type(model).__name__} has an auxiliary loss, but no coefficient that we know "
        "(router_aux_loss_coef, aux_loss_coef). Set output_router_logits to false in its config to train without it."
    )
