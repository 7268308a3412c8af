"""Facts about Hugging Face models that the attachment needs."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING

from dft_plugin.errors import UnsupportedModelError
from dft_plugin.hf.head import head_slots

_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside `torch.compile`, PEFT's wrappers, and those of other tuners that hold a `base_model`.

    Raises:
        UnsupportedModelError: the model is wrapped for several devices already.
    """
    model = _without_known_wrappers(model)
    return model.base_model if _holds_a_model(model) else model  # type: ignore[return-value]


def is_in_another_wrapper(model: nn.Module) -> bool:
    """Whether a model stands as `base_model` in a wrapper that is neither torch's nor PEFT's.

    It may hand its calls on, or compute a loss by itself: only a trainer's hook would notice.
    """
    return _holds_a_model(_without_known_wrappers(model))


def _holds_a_model(model: nn.Module) -> bool:
    # A model of transformers calls its own backbone so.
    return not isinstance(model, PreTrainedModel) and isinstance(getattr(model, "base_model", None), PreTrainedModel)


def _without_known_wrappers(model: nn.Module) -> nn.Module:
    if type(model).__name__ in _WRAPPERS:
        raise UnsupportedModelError(
            f"the model is wrapped in {type(model).__name__}. Attach the loss first, then wrap the model."
        )
    model = getattr(model, "_orig_mod", model)
    peft: Any = sys.modules.get("peft")
    if peft is not None and isinstance(model, peft.PeftMixedModel):
        # A tuner is always around the model; there is no `get_base_model`.
        model = model.base_model.model
    elif peft is not None and isinstance(model, peft.PeftModel):
        _require_loss_of_the_model(model, peft)
        model = model.get_base_model()
    return model


def _require_loss_of_the_model(model: Any, peft: Any) -> None:
    config = model.peft_config[model.active_adapter]
    if isinstance(config, getattr(peft, "CPTConfig", ())):
        raise UnsupportedModelError(
            f"{type(config).__name__} makes a loss of its own from the model's logits, and drops the model's. "
            "Train it without `loss:`, or take another way to train a prompt, PromptTuningConfig for one."
        )


def require_causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return `model`, or raise `UnsupportedModelError` where it is known not to ask for the next token.

    The lists of transformers do not decide: a speech or omni model stands in others than a text model. A class that
    is let through computes either transformers' loss of causal LMs, or one by itself, which is checked on the first
    batch (`own_loss.py`).
    """
    name = type(model).__name__
    if hasattr(model, "get_train_dataloader"):
        raise UnsupportedModelError(f"{name} is a trainer, and a model is needed. Use dft_plugin.activate(trainer).")
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{name} is not a transformers PreTrainedModel. For a model of your own use "
            "dft_plugin.linear_token_loss or dft_plugin.token_loss."
        )
    if _is_encoder_decoder(model):
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder, whose labels are not shifted; only causal language models are supported. "
            "Train it without `loss:`."
        )
    if not _asks_for_tokens(model):
        raise UnsupportedModelError(
            f"{name} is not a causal language model; its loss is not the likelihood of the next token. Train it "
            "without `loss:`."
        )
    if not _takes_labels(model):
        parts = [f"model.{path}" for path, part in model.named_children() if _can_be_trained(part)]
        instead = f"Train a part that does: {', '.join(parts)}." if parts else "Train it without `loss:`."
        raise UnsupportedModelError(f"{name} takes no labels, so it has no loss to replace. {instead}")
    return model


def _is_encoder_decoder(model: PreTrainedModel) -> bool:
    # BLIP-2 does not say of itself that the language model inside is one.
    head = model.get_output_embeddings()
    owners = [] if head is None else [parent for parent, _ in head_slots(model, head)]
    return any(getattr(getattr(part, "config", None), "is_encoder_decoder", False) for part in [model, *owners])


def _asks_for_tokens(model: PreTrainedModel) -> bool:
    """Whether `model.loss_function` is that of causal LMs, or nothing is known of it and there is a language head."""
    loss_type = getattr(model, "loss_type", None)
    if loss_type is None or loss_type not in LOSS_MAPPING:
        return model.get_output_embeddings() is not None
    # By their keys: others (Unsloth) put functions of their own there.
    return LOSS_MAPPING[loss_type] in (LOSS_MAPPING["ForCausalLM"], LOSS_MAPPING["ForConditionalGeneration"])


def _takes_labels(model: nn.Module) -> bool:
    parameters = inspect.signature(type(model).forward).parameters
    return "labels" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _can_be_trained(part: nn.Module) -> bool:
    try:
        require_causal_lm(part)
    except UnsupportedModelError:
        return False
    return "labels" in inspect.signature(type(part).forward).parameters


def text_config(model: nn.Module) -> Any:
    """Return the config of the language model inside; None of what is no model of transformers."""
    config = getattr(model, "config", None)
    # What is trained decodes; of a model that has an encoder of text beside, it is one of two.
    return config.get_text_config(decoder=True) if isinstance(config, PretrainedConfig) else None


def eos_token_ids(model: nn.Module) -> tuple[int, ...]:
    """Token ids that end a sequence, as the generation config and the config say.

    A tokenizer and its chat template may know of more (`tokens.py`).
    """
    found: dict[int, None] = {}
    for holder in (getattr(model, "generation_config", None), getattr(model, "config", None), text_config(model)):
        ids = getattr(holder, "eos_token_id", None)
        found.update(dict.fromkeys(ids if isinstance(ids, (list, tuple)) else () if ids is None else (ids,)))
    return tuple(found)


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
