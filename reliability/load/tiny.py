"""A model and data that are over in milliseconds, so that ten thousand steps are over in minutes."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB = 128


def model(layers: int = 1, vocab: int = VOCAB, width: int = 32, **changes: Any) -> LlamaForCausalLM:
    """Return a causal LM with numbers of a seed."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "vocab_size": vocab,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 1 << 18,
            "initializer_range": 0.2,
            **changes,
        }
    )
    return LlamaForCausalLM(config)


def rows(count: int = 64) -> list[dict[str, list[int]]]:
    """Return tokenised rows of several lengths, a part of whose labels is ignored."""
    pick = random.Random(0)
    made = []
    for _ in range(count):
        ids = [pick.randrange(3, VOCAB) for _ in range(pick.randrange(6, 20))]
        made.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    return made


def collate(features: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pad on the right."""
    width = max(len(one["input_ids"]) for one in features)
    filled = {"input_ids": 0, "labels": -100}
    return {
        key: torch.tensor([one[key] + [fill] * (width - len(one[key])) for one in features])
        for key, fill in filled.items()
    }


def batch() -> dict[str, Tensor]:
    """Return four rows."""
    return collate(rows(4))
