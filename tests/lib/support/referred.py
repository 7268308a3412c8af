"""Losses that compare with a reference, from the logits of a model and of a reference, in float64."""

from __future__ import annotations

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
