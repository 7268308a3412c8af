"""Does the loss that a model answers with equal the one written out by hand, gradients included?"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from support import oracle, tiny

LOSS_GAP = 1e-6
GRAD_GAP = 1e-5


def build(model_type: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A tiny random causal LM in train mode, its biases not zero: a zero bias hides that it is dropped."""
    config = CONFIG_MAPPING[model_type](**{**tiny.SHAPE, **changes})
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        # Some classes of transformers 4 warn of their own deprecated attributes.
        warnings.simplefilter("ignore")
        return noisy(AutoModelForCausalLM.from_config(config).float()).train()


def noisy(model: Any, scale: float = 0.05) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return model


def checkpoint(model: PreTrainedModel, reentrant: bool) -> None:
    """Turn gradient checkpointing on, as a Trainer does for a model that PEFT may have frozen."""
    # transformers 5.23 has renamed it.
    renamed = getattr(model, "activation_checkpointing_enable", None)
    (renamed or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
    model.enable_input_require_grads()


def backward(model: nn.Module, inputs: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    """The loss that the model answers with, and its gradients."""
    model.zero_grad(set_to_none=True)
    loss = model(**inputs).loss
    loss.backward()
    return float(loss.detach()), tiny.gradients(model)


def truth(
    model: nn.Module,
    inputs: dict[str, Any],
    weight: oracle.Weight = oracle.dft,
    num_items: float | None = None,
) -> tuple[float, dict[str, Tensor]]:
    """Loss in float64 from the logits of the model's own forward, and its gradients by autograd."""
    asked = {key: value for key, value in inputs.items() if key not in ("labels", "shift_labels")}
    logits = model(**asked).logits
    if "shift_labels" in inputs:
        aligned = inputs["shift_labels"]
    else:
        logits, aligned = logits[:, :-1], inputs["labels"][:, 1:]
    model.zero_grad(set_to_none=True)
    loss = oracle.loss(logits, aligned, weight, num_items)
    loss.backward()
    return float(loss.detach()), tiny.gradients(model)


def grad_gap(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Norm of the difference of all gradients, over the norm of the true ones."""
    assert ours.keys() == theirs.keys()
    gap = torch.stack([(ours[name] - theirs[name]).norm() for name in ours]).norm()
    return float(gap / torch.stack([grad.norm() for grad in theirs.values()]).norm())


def assert_same(
    ours: tuple[float, dict[str, Tensor]],
    theirs: tuple[float, dict[str, Tensor]],
    loss_gap: float = LOSS_GAP,
    gradient_gap: float = GRAD_GAP,
) -> None:
    assert theirs[1], "nothing was trained"
    assert abs(ours[0] - theirs[0]) <= loss_gap * abs(theirs[0]), (ours[0], theirs[0])
    assert grad_gap(ours[1], theirs[1]) <= gradient_gap
