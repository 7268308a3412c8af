"""Labels to targets: the ignore index, the shift, the count. The only module that knows them."""

from __future__ import annotations

import torch
from torch import Tensor

from dft_plugin.errors import LabelError

IGNORE_INDEX = -100
"""The label that marks a position as no target, in every host (`torch.nn.CrossEntropyLoss`)."""


def shift(labels_BS: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Align labels with the hidden states that predict them.

    Args:
        labels_BS: labels as a collator gives them: position `s` holds the token at `s`.
        ignore_index: what fills the last position, which predicts nothing.

    Returns:
        Labels [..., S]: position `s` holds the token at `s + 1`.
    """
    shifted_BS = torch.full_like(labels_BS, ignore_index)
    shifted_BS[..., :-1] = labels_BS[..., 1:]
    return shifted_BS


def with_own_ignore_index(labels: Tensor, ignore_index: int) -> Tensor:
    """Return labels in which `IGNORE_INDEX` marks what another index marked."""
    return labels if ignore_index == IGNORE_INDEX else labels.masked_fill(labels == ignore_index, IGNORE_INDEX)


def select(labels: Tensor, vocab_size: int, ignore_index: int = IGNORE_INDEX) -> tuple[Tensor, Tensor]:
    """Find the positions that are scored and their targets.

    Args:
        labels: aligned labels of any shape and any integer dtype.
        vocab_size: number of logits per position.
        ignore_index: the label of positions that are not scored.

    Returns:
        `(kept_N, targets_T)`: a bool mask over the flattened positions, and the int64 targets of the
        kept ones.

    Raises:
        LabelError: a label that is neither `ignore_index` nor in `[0, vocab_size)`.
    """
    # int64 first: in uint8, -100 is compared as 156.
    labels_N = labels.reshape(-1).long()
    kept_N = labels_N != ignore_index
    targets_T = labels_N[kept_N]
    if targets_T.numel():
        low, high = int(targets_T.min()), int(targets_T.max())
        if low < 0 or high >= vocab_size:
            raise LabelError(
                f"labels hold {low if low < 0 else high}, but the model has {vocab_size} logits "
                f"(allowed: 0 to {vocab_size - 1}, or {ignore_index} for positions to ignore). Check "
                "that the tokenizer belongs to the model, and resize the embeddings after adding tokens."
            )
    return kept_N, targets_T
