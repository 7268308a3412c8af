"""Targets sent through code that moves labels about and knows nothing of columns.

Truncation, packing, padding and collation look at a label for one thing, whether it is the ignore index. So each
target goes through as a number of its own, in the place of its label: where the number comes out, there the label and
its columns belong, whatever was cut, joined or filled up on the way. A number that is never taken back is no id of any
vocabulary, so that it is an error and not a loss.

Shapes: S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dft_plugin.core.targets import IGNORE_INDEX
from dft_plugin.hf.columns import Numbers

FIRST = 1 << 40
"""Numbers from here on are no tokens."""


class Passports:
    """What was sent, by number.

    Attributes:
        width: how many columns each target has.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._labels: list[Any] = []
        self._columns: list[list[Numbers]] = [[] for _ in range(width)]
        self._count = 0

    def send(
        self, labels: Sequence[int], columns: Sequence[Numbers], *, ignore: int | None = IGNORE_INDEX
    ) -> list[int]:
        """Return what goes in the place of labels.

        Args:
            labels: [S].
            columns: `width` columns [S].
            ignore: the label that is sent as it is; None: none.
        """
        labels_S = np.asarray(labels, np.int64)
        numbers_S = np.arange(len(labels_S)) + (FIRST + self._count)
        self._count += len(labels_S)
        self._labels.append(labels_S)
        for kept, column_S in zip(self._columns, columns, strict=True):
            kept.append(column_S)
        sent: list[int] = (numbers_S if ignore is None else np.where(labels_S == ignore, labels_S, numbers_S)).tolist()
        return sent

    def receive(self, sent: Any) -> tuple[NDArray[np.int64], list[Numbers]]:
        """Return the labels, and the columns, for what has come out; of any shape.

        What never was a number of ours stays as it is, and its columns are NaN. What was sent without a number is the
        first token of a sequence, which nothing of it predicts: behind another it is no target, so it comes back as
        one that is ignored.
        """
        sent = np.asarray(sent, np.int64)
        known = sent >= FIRST
        at = np.where(known, sent - FIRST, 0)
        if not self._count:
            return sent, [np.full(sent.shape, np.nan, np.float32) for _ in range(self.width)]
        columns = [np.where(known, np.concatenate(kept)[at], np.float32(np.nan)) for kept in self._columns]
        unnumbered = np.logical_or.reduce([known & np.isnan(column) for column in columns], initial=False)
        labels = np.where(known, np.concatenate(self._labels)[at], sent)
        return np.where(unnumbered, IGNORE_INDEX, labels), columns


_MESSAGE = 1 << 32
"""An id is below it; the number of its message is written above."""


def marked(ids: Sequence[int], message: int) -> list[int]:
    """Write into the token ids of a message which it is, from 1 on, for who cuts and joins ids and reads none."""
    return [token + message * _MESSAGE for token in ids]


def read_marks(ids: Sequence[int], labels: Sequence[int]) -> tuple[list[int], list[int], NDArray[np.int64]]:
    """Take the messages out of ids and labels [S].

    Returns:
        Ids and labels as they are without; and which message each is of [S], 0 for none. A label without a mark, an
        end of a turn that a host puts there by itself, is of the message before.
    """
    ids_S, labels_S = np.asarray(ids, np.int64), np.asarray(labels, np.int64)
    ignored_S = labels_S == IGNORE_INDEX
    of_ids_S, of_labels_S = ids_S // _MESSAGE, np.where(ignored_S, 0, labels_S // _MESSAGE)
    before_S = np.concatenate([[0], of_ids_S[:-1]])
    of_S = np.where(ignored_S, of_ids_S, np.where(of_labels_S == 0, before_S, of_labels_S))
    return (ids_S % _MESSAGE).tolist(), np.where(ignored_S, labels_S, labels_S % _MESSAGE).tolist(), of_S
