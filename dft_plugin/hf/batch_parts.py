"""Each row of an evaluation batch is counted once, in however many parts and how often a step asks about it.

Shapes: B rows of a batch, S positions.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class BatchParts:
    """The rows of one batch that no `compute_loss` of its prediction step has been given yet.

    Args:
        batch: as the loader gave it.
        counted: bool, which of its rows [B] (or positions [B, S]) statistics count at all; None: all.
    """

    def __init__(self, batch: Any, counted: Tensor | None) -> None:
        self._labels_BS = labels_of(batch)
        self._counted = counted
        self._asked = 0

    def take(self, inputs: Any) -> tuple[bool, Tensor | None]:
        """Take what a `compute_loss` is given out of what is left.

        Args:
            inputs: the batch, or the next rows of it.

        Returns:
            Whether these rows count, and which of them; None: all.
        """
        given_BS, whole_BS = labels_of(inputs), self._labels_BS
        rows = 0 if given_BS is None else given_BS.shape[0]
        if given_BS is None or whole_BS is None or not rows < whole_BS.shape[0]:
            first, self._asked = not self._asked, max(self._asked, 1, rows)
            return first, self._counted
        part = slice(self._asked, self._asked + rows)
        if part.stop > whole_BS.shape[0]:
            return False, None
        self._asked = part.stop
        if self._counted is None or self._counted.all():
            return True, None
        if not _same(given_BS, whole_BS[part]):
            logger.warning(
                "dft: an evaluation step asks about parts of its batch that are no rows of it in their order, so that "
                "rows which were repeated to fill it up cannot be told apart: dft/* of this evaluation count them."
            )
            return True, None
        return True, self._counted[part]


def labels_of(batch: Any) -> Tensor | None:
    """Return the labels of a batch, aligned or not; None where it has none."""
    if not isinstance(batch, Mapping):
        return None
    labels = batch.get("labels")
    labels = batch.get("shift_labels") if labels is None else labels
    return labels if isinstance(labels, Tensor) and labels.dim() else None


def _same(given_BS: Tensor, part_BS: Tensor) -> bool:
    """Whether two sets of labels agree, as far as both reach: a part may have been trimmed."""
    if given_BS.dim() != part_BS.dim():
        return False
    length = min(given_BS.shape[-1], part_BS.shape[-1])
    return torch.equal(given_BS[..., :length].cpu(), part_BS[..., :length].cpu())
