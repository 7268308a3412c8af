"""Each target of an evaluation batch is counted once, in however many parts and how often a step asks about its batch.

Shapes: B rows of a batch, S positions, P rows of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dft_plugin.core.targets import IGNORE_INDEX, shift


class BatchParts:
    """The targets of one batch that no `compute_loss` of its prediction step has been given yet.

    A part is found by its tokens or labels, wherever it stands in the batch. What cannot be found is taken for the
    rows that come next.

    Args:
        batch: as the loader gave it.
        counted: bool, which of its rows [B] (or positions [B, S]) statistics count at all; None: all.
        warn: says what cannot be told.
    """

    def __init__(self, batch: Any, counted: Tensor | None, warn: Callable[[str], None]) -> None:
        self._batch = batch
        self._counted = counted
        self._warn = warn
        self._next = 0
        # Most steps ask once, and nothing has to be read from the device then.
        self._asked: list[tuple[slice, Tensor]] = []

    def take(self, inputs: Any) -> tuple[bool, Tensor | None]:
        """Take what a `compute_loss` is given out of what is left.

        Args:
            inputs: the batch, or a part of it.

        Returns:
            Whether any of these rows counts, and which of them [P], or which positions [P, S]; None: all.
        """
        given, whole = labels_of(inputs), labels_of(self._batch)
        if given is None or whole is None:
            first, self._next = not self._next, max(self._next, 1)
            return first, self._counted
        part = self._place(inputs, given.shape[0], whole.shape[0])
        if part is None:
            return False, None
        before, self._next = list(self._asked), part.stop
        self._asked.append((part, given))
        mask = self._mask(inputs, part)
        if not before or given.dim() != 2:
            return True, mask
        return self._left(given, part, before, mask, shifted=inputs.get("labels") is None)

    def _place(self, inputs: Any, rows: int, all_rows: int) -> slice | None:
        """Return which rows of the batch these are; None where there can be none."""
        if rows >= all_rows:
            return slice(0, all_rows)
        following = slice(self._next, self._next + rows)
        others = (slice(start, start + rows) for start in range(all_rows - rows + 1))
        for part in (following, *others):
            if part.stop <= all_rows and self._is(inputs, part):
                return part
        return following if following.stop <= all_rows else None

    def _is(self, inputs: Any, part: slice) -> bool:
        return any(_same(inputs[key], self._batch[key][part]) for key in _ROWS if key in inputs and key in self._batch)

    def _mask(self, inputs: Any, part: slice) -> Tensor | None:
        """Return which of these rows count, where they are told by their place in the batch; None: all."""
        if self._counted is None or self._counted.all():
            return None
        if self._is(inputs, part):
            return self._counted[part]
        self._warn(
            "dft: an evaluation step asks about rows that are not those of its batch in their order, so that rows "
            "which were repeated to fill it up cannot be told apart: dft/* of this evaluation count them."
        )
        return None

    def _left(
        self, given_PS: Tensor, part: slice, before: list[tuple[slice, Tensor]], mask: Tensor | None, *, shifted: bool
    ) -> tuple[bool, Tensor | None]:
        """Leave out the targets that were asked about before."""
        targets_PS = given_PS.cpu() != IGNORE_INDEX
        done_PS = torch.zeros_like(targets_PS)
        for other, labels in before:
            start, stop = max(part.start, other.start), min(part.stop, other.stop)
            columns = min(labels.shape[-1], done_PS.shape[1])
            for row in range(start, stop):
                done_PS[row - part.start, :columns] |= labels[row - other.start, :columns].cpu() != IGNORE_INDEX
        left_PS = targets_PS & ~done_PS
        if not left_PS.any():
            return False, None
        if torch.equal(left_PS, targets_PS):
            return True, mask
        left_PS = left_PS if shifted else shift(left_PS.long(), 0).bool()
        if mask is not None:
            left_PS &= mask.cpu() if mask.dim() == 2 else mask.cpu()[:, None]
        return True, left_PS


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
