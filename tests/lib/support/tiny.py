"""Tiny models and batches, made on the spot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

VOCAB = 128

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes}))


def mixtral(seed: int = 0, **changes: Any) -> MixtralForCausalLM:
    torch.manual_seed(seed)
    router = {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    return MixtralForCausalLM(MixtralConfig(**{**SHAPE, **router, **changes}))


def batch(rows: int = 3, length: int = 20, masked: int = 5, seed: int = 0) -> dict[str, Tensor]:
    """Token ids with the first `masked` labels of each row ignored, and one row that is padded."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, VOCAB, (rows, length), generator=generator)
    labels = input_ids.clone()
    labels[:, :masked] = -100
    attention_mask = torch.ones_like(input_ids)
    attention_mask[-1, -4:] = 0
    labels[-1, -4:] = -100
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def max_gap(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Largest absolute difference between two sets of named tensors, which must name the same."""
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}
