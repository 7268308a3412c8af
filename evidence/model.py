"""Small models, and batches for them. Shapes: B rows, T tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from evidence.alphabet import END, PAD, VOCAB, encode
from evidence.tasks import Example

IGNORED = -100


@dataclass(frozen=True)
class Size:
    """Of a model.

    Attributes:
        hidden: width; that of the MLP is 8/3 of it.
        layers: how many.
    """

    hidden: int = 96
    layers: int = 4


def build(size: Size, seed: int) -> PreTrainedModel:
    """Return a model that knows nothing."""
    torch.manual_seed(seed)
    heads = 4
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 8 // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def batch(examples: Sequence[Example], end: int = END) -> dict[str, Tensor]:
    """Return `input_ids` and `labels` [B, T], padded on the right: a causal model needs no mask for that.

    Args:
        examples: a row each.
        end: the token behind an answer.
    """
    pairs = [(encode(one.prompt), [*encode(one.answer), end]) for one in examples]
    length = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids_BT = torch.full((len(pairs), length), PAD)
    labels_BT = torch.full((len(pairs), length), IGNORED)
    for row, (prompt, answer) in enumerate(pairs):
        whole = prompt + answer
        ids_BT[row, : len(whole)] = torch.tensor(whole)
        labels_BT[row, len(prompt) : len(whole)] = torch.tensor(answer)
    return {"input_ids": ids_BT, "labels": labels_BT}
