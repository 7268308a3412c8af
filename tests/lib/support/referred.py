"""Losses that compare with a reference, from the logits of a model and of a reference, in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from support import family, oracle, tiny
from support.family_soft import asft, gift


def _columns(ref_logits: Tensor, ids: Tensor) -> dict[str, Tensor]:
    q = ref_logits.double().softmax(1)
    own = q.gather(1, ids[:, None])
    mass = (q * (q < own)).sum(1) + own[:, 0]
    return {"ref_logp": oracle.log_probabilities(ref_logits, ids), "ref_mass": mass}


def of_columns(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A formula of a reference's columns as one of its logits."""
    return lambda logits, ids, *, ref_logits, **given: formula(logits, ids, **_columns(ref_logits, ids), **given)


LOSSES: dict[str, tuple[dict[str, Any], Callable[..., Tensor]]] = {
    "prift": ({"name": "prift"}, of_columns(family.prift)),
    "prift, mass": ({"name": "prift", "by": "mass"}, of_columns(family.prift_mass)),
    "iw_sft": ({"name": "iw_sft"}, of_columns(family.iw_sft)),
    "iw_sft, token": ({"name": "iw_sft", "per": "token"}, of_columns(family.iw_sft_token)),
    "asft": ({"name": "asft", "strength": 0.5}, lambda *a, **k: asft(*a, strength=0.5, **k)),
    "gift": ({"name": "gift", "beta": 2.0}, lambda *a, **k: gift(*a, beta=2.0, **k)),
}
"""What is written, and its formula."""


def truth(
    model: Any,
    inputs: dict[str, Tensor],
    ref_logits_BSV: Tensor,
    formula: Callable[..., Tensor],
    sequence_BS: Tensor | None = None,
    num_items: float | None = None,
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients from the logits of the model's own forward, and of a reference."""
    asked = {key: value for key, value in inputs.items() if key != "labels"}
    logits_BSV, labels_BS = model(**asked).logits, inputs["labels"]
    if sequence_BS is None:
        sequence_BS = torch.arange(len(labels_BS))[:, None].expand_as(labels_BS)
    kept = labels_BS[:, 1:] != -100
    losses = formula(
        logits_BSV[:, :-1][kept],
        labels_BS[:, 1:][kept],
        ref_logits=ref_logits_BSV[:, :-1][kept].detach(),
        sequence=sequence_BS[:, 1:][kept],
    )
    model.zero_grad(set_to_none=True)
    loss = losses.sum() / (losses.numel() if num_items is None else num_items)
    loss.backward()
    return float(loss.detach()), tiny.gradients(model)


LAYERS = ["q_proj", "v_proj"]
PARTS = {
    "layers": {"target_modules": LAYERS},
    "head": {"target_modules": [*LAYERS, "lm_head"]},
    "saved head": {"target_modules": LAYERS, "modules_to_save": ["lm_head"]},
    "dora on the head": {"target_modules": ["lm_head"], "use_dora": True},
}
"""Where adapters are."""


def adapted(model: Any = None, **lora: Any) -> Any:
    """A LoRA model that is not its base any more."""
    import peft

    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 8, "target_modules": LAYERS, **lora})
    with warnings.catch_warnings():
        # peft warns of heads that it saves.
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(tiny.llama().train() if model is None else model, config)
    return moved(model)


def moved(model: Any, scale: float = 0.1) -> Any:
    """Move what is trained, as some steps of training would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * scale)
    return model.train()


def base_logits(model: Any, batch: dict[str, Any]) -> Tensor:
    asked = {key: value for key, value in batch.items() if key != "labels"}
    training = model.training
    with torch.no_grad(), model.disable_adapter():
        logits = model.eval()(**asked).logits
    model.train(training)
    return logits


def own_logits(model: Any, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**{key: value for key, value in batch.items() if key != "labels"}).logits
