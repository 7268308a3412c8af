"""Labels to targets: the ignore index, the shift, the count. The only module that knows them.

Shapes: B batch, S sequence, N positions (flattened), T scored ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dft_plugin.core.transfer import Fetched, bring, send
from dft_plugin.errors import LabelError
from dft_plugin.objectives import Clock, Targets

if TYPE_CHECKING:
    from dft_plugin.core.reference import Referred

IGNORE_INDEX = -100
"""The label that marks a position as no target, in every host (`torch.nn.CrossEntropyLoss`)."""


_SHORT = (torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
"""All integers but int64."""


def require_index(labels: Tensor) -> None:
    """Require labels that are indices.

    Raises:
        LabelError: they are floats, bools, complex or quantised.
    """
    if labels.dtype not in (*_SHORT, torch.int64):
        raise LabelError(f"labels have dtype {labels.dtype}; an integer dtype is needed (labels.long()).")


def _holds(dtype: torch.dtype, index: int) -> bool:
    """Say whether a dtype has an index: unsigned ones have no -100, short ones not every index that is ignored."""
    info = torch.iinfo(dtype)
    return info.min <= index <= info.max


def shift(labels_BS: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Align labels with the hidden states that predict them.

    Args:
        labels_BS: labels as a collator gives them: position `s` holds the token at `s`.
        ignore_index: what fills the last position, which predicts nothing.

    Returns:
        Labels [..., S]: position `s` holds the token at `s + 1`.
    """
    if labels_BS.dtype in _SHORT and not _holds(labels_BS.dtype, ignore_index):
        labels_BS = labels_BS.long()
    shifted_BS = torch.full_like(labels_BS, ignore_index)
    shifted_BS[..., :-1] = labels_BS[..., 1:]
    return shifted_BS


def shift_joined(labels_N: Tensor, offsets: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Align the labels of sequences that stand one after the other, none of them empty.

    Args:
        labels_N: position `n` holds the token at `n`.
        offsets: where each sequence begins, and at the end N.
        ignore_index: what fills the last position of each sequence, which predicts nothing: not what comes next.
    """
    return shift(labels_N, ignore_index).index_fill_(0, offsets[1:].to(labels_N.device) - 1, ignore_index)


def with_own_ignore_index(labels: Tensor, ignore_index: int) -> Tensor:
    """Return labels in which `IGNORE_INDEX` marks what another index marked."""
    return labels if ignore_index == IGNORE_INDEX else labels.masked_fill(labels == ignore_index, IGNORE_INDEX)


@dataclass(frozen=True)
class Facts:
    """What is known of a batch beside its labels; what is of positions is aligned with these.

    Attributes:
        sequence_BS: int64, which sequence of the batch the predicted token is in; None: nobody asks.
        position_BS: int64, its position in its sequence; None: nobody asks.
        columns: numbers of the data by the name of their column, [B, S].
        clock: how far the run is; None where nobody knows.
        reference: what a frozen reference made of the batch; None where nobody asks.
    """

    sequence_BS: Tensor | None = None
    position_BS: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    clock: Clock | None = None
    reference: Referred | None = None

    def shifted(self) -> Facts:
        """Align with the positions that predict, as `shift` does with labels; the last of each row gets 0."""
        columns = {name: shift(column, 0) for name, column in self.columns.items()}
        sequence_BS, position_BS = (
            None if one is None else shift(one, 0) for one in (self.sequence_BS, self.position_BS)
        )
        return replace(self, sequence_BS=sequence_BS, position_BS=position_BS, columns=columns)


@dataclass(frozen=True)
class Selection:
    """What is scored of a batch. It is kept on the CPU, since its number is the shape of all that follows.

    Attributes:
        shape: of the labels; N positions in all.
        positions_T: int64, the scored ones among the N flattened ones, ascending.
        ids_T: int64, their labels.
        ignore_index: what marked the others.
        facts: what else is known of all N positions.
    """

    shape: torch.Size
    positions_T: Tensor
    ids_T: Tensor
    ignore_index: int = IGNORE_INDEX
    facts: Facts = Facts()

    @property
    def count(self) -> int:
        """T, the number of scored positions."""
        return self.ids_T.numel()

    def require_within(self, vocab_size: int) -> None:
        """Check the labels against the number of logits per position.

        Raises:
            LabelError: one is neither `ignore_index` nor in `[0, vocab_size)`.
        """
        if not self.count:
            return
        low, high = (int(end) for end in self.ids_T.aminmax())
        if low < 0 or high >= vocab_size:
            raise LabelError(
                f"labels hold {low if low < 0 else high}, but the model has {vocab_size} logits "
                f"(allowed: 0 to {vocab_size - 1}, or {self.ignore_index} for positions to ignore). Check "
                "that the tokenizer belongs to the model, and resize the embeddings after adding tokens."
            )

    def targets(self, device: torch.device) -> Targets:
        """Return what a kernel gets, on the device of the hidden states or the logits."""
        facts, sequence_T, position_T = self.facts, None, None
        if facts.sequence_BS is not None and facts.position_BS is not None:
            sequence_T = _numbered(self._chosen(facts.sequence_BS, device))
            position_T = self._chosen(facts.position_BS, device)
        columns = {name: self._chosen(column, device).float() for name, column in facts.columns.items()}
        return Targets(send(self.ids_T, device), position_T, sequence_T, columns, facts.clock)

    def _chosen(self, of_BS: Tensor, device: torch.device) -> Tensor:
        return bring(of_BS, device).reshape(-1).index_select(0, send(self.positions_T, device))

    def rows(self, of: Tensor) -> Tensor:
        """Return [T, ...], the scored rows of a tensor that has one for each position: `shape`, then a dimension."""
        rows = of.reshape(-1, of.shape[-1])
        return rows if rows.shape[0] == self.count else rows.index_select(0, send(self.positions_T, of.device))

    def mask(self, device: torch.device) -> Tensor:
        """Return which positions are scored: bool, of the labels' shape, on a device."""
        mask_N = torch.zeros(self.shape.numel(), dtype=torch.bool, device=device)
        return mask_N.index_fill_(0, send(self.positions_T, device), True).view(self.shape)


def _numbered(index_T: Tensor) -> Tensor:
    """Number what occurs, 0, 1 ... in its order; as `torch.unique`, whose size would be waited for."""
    sorted_T, order_T = index_T.sort()
    numbers_T = torch.zeros_like(order_T)
    numbers_T[1:] = (sorted_T[1:] != sorted_T[:-1]).cumsum(0)
    return torch.empty_like(order_T).scatter_(0, order_T, numbers_T)


def select(labels: Tensor, ignore_index: int = IGNORE_INDEX, facts: Facts | None = None) -> Selection:
    """Find the positions that are scored and their targets.

    Args:
        labels: aligned labels of any shape and any integer dtype; those on a device are waited for.
        ignore_index: the label of positions that are not scored.
        facts: what else is known of the positions.

    Raises:
        LabelError: labels of another dtype.
    """
    require_index(labels)
    # int64 first: in uint8, -100 is compared as 156.
    labels_N = Fetched(labels).read().reshape(-1).long()
    positions_T = (labels_N != ignore_index).nonzero()[:, 0]
    return Selection(labels.shape, positions_T, labels_N.index_select(0, positions_T), ignore_index, facts or Facts())
