"""Each row of an evaluation batch is counted once, in however many parts and how often a step asks about it.

Shapes: B rows of a batch, S positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class BatchParts:
    """The rows of one batch that no `compute_loss` of its prediction step has been given yet.

    Args:
        batch: as the loader gave it.
        counted: bool, which of its rows [B] (or positions [B, S]) statistics count at all; None: all.
        warn: says what cannot be told.
    """

    def __init__(self, batch: Any, counted: Tensor | None, warn: Callable[[str], None]) -> None:
        self._batch = batch
        self._counted = counted
        self._warn = warn
        self._asked = 0

    def take(self, inputs: Any) -> tuple[bool, Tensor | None]:
        """Take what a `compute_loss` is given out of what is left.

        Args:
            inputs: the batch, or the next rows of it.

        Returns:
            Whether these rows count, and which of them; None: all.
        """
        given_BS, whole_BS = labels_of(inputs), labels_of(self._batch)
        if given_BS is None or whole_BS is None:
            first, self._asked = not self._asked, max(self._asked, 1)
            return first, self._counted
        rows, all_rows = given_BS.shape[0], whole_BS.shape[0]
        if rows >= all_rows:
            first, self._asked = not self._asked, rows
            return first, self._mask(inputs, slice(0, all_rows))
        part = slice(self._asked, self._asked + rows)
        if part.stop > all_rows:
            return False, None
        self._asked = part.stop
        return True, self._mask(inputs, part)

    def _mask(self, inputs: Any, part: slice) -> Tensor | None:
        """Return which of these rows count, where they are told by their place in the batch; None: all."""
        if self._counted is None or self._counted.all():
            return None
        if any(_same(inputs[key], self._batch[key][part]) for key in _ROWS if key in inputs and key in self._batch):
            return self._counted[part]
        self._warn(
            "dft: an evaluation step asks about rows that are not those of its batch in their order, so that rows "
            "which were repeated to fill it up cannot be told apart: dft/* of this evaluation count them."
        )
        return None


_ROWS = ("labels", "shift_labels", "input_ids")
"""What tells a row of a batch. One of them is enough: a step may mask labels, or drop the tokens."""


def labels_of(batch: Any) -> Tensor | None:
    """Return the labels of a batch, aligned or not; None where it has none."""
    if not isinstance(batch, Mapping):
        return None
    labels = batch.get("labels")
    labels = batch.get("shift_labels") if labels is None else labels
    return labels if isinstance(labels, Tensor) and labels.dim() else None


def _same(given_BS: Any, part_BS: Any) -> bool:
    """Whether the rows agree, as far as both reach: a part may have been trimmed."""
    if not isinstance(given_BS, Tensor) or given_BS.shape[:-1] != part_BS.shape[:-1]:
        return False
    length = min(given_BS.shape[-1], part_BS.shape[-1])
    return torch.equal(given_BS[..., :length].cpu(), part_BS[..., :length].cpu())
