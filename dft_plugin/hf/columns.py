"""Columns of a user's data, a number for each row or token, turned into one for each token; for messages, `chats.py`.

Shapes: S tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dft_plugin.config.beforehand import COMPUTABLE
from dft_plugin.config.spelling import did_you_mean
from dft_plugin.core.plan import LossPlan
from dft_plugin.core.targets import IGNORE_INDEX
from dft_plugin.errors import ConflictError
from dft_plugin.hf.facts import COLUMN

TOKENS = "input_ids"
LABELS = "labels"
ROW = "dft_row"

Numbers = NDArray[np.float32]
PACKED = ("seq_lengths", "seq_idx", "attention_mask", "position_ids")
"""Keys of a row that may say which sequences are packed into it."""


@dataclass(frozen=True)
class Column:
    """A column that the loss reads.

    Attributes:
        name: as the user's data calls it.
        factor: whether weights are multiplied by it, so that it must not be negative.
    """

    name: str
    factor: bool = False

    @property
    def key(self) -> str:
        """What it is called once there is a number for each token."""
        return COLUMN + self.name


def columns_of(plan: LossPlan) -> tuple[Column, ...]:
    """Return what a plan reads at any time of the run, by name."""
    factors = {plan.rules.column, plan.adjusted.column if plan.adjusted is not None else None} - {None}
    return tuple(Column(name, name in factors) for name in sorted({*plan.columns, *filter(None, factors)}))


def missing(column: Column, there: Sequence[str], where: str, hint: str = "") -> ConflictError:
    """Return the error for a column that is not in the data."""
    said = f"the loss reads the column `{column.name}`, which is not in {where}."
    said += f"{did_you_mean(column.name, there)} There are: {', '.join(there)}."
    if column.name in COMPUTABLE:
        said += " `dft reference CONFIG` computes it, and says how to train with it."
    return ConflictError([f"{said} {hint}".rstrip()])


def of_row(
    column: Column, value: Any, labels: Sequence[int], where: str, begins: Sequence[int] | NDArray[np.int64] = (0,)
) -> Numbers:
    """Make a number for each token of what stands in a row that holds tokens.

    Args:
        column: which one.
        value: a number, or one for each token.
        labels: [S]; what is no target needs no number, nor does the first token of a sequence, which nothing of it
            predicts.
        where: which row, for messages.
        begins: where sequences begin in the row; see `beginnings`.

    Returns:
        [S]: 1 for what is no target; NaN for a first token without a number.

    Raises:
        ConflictError: it is neither, or a number cannot be used.
    """
    found = parsed(column, value, where)
    if found.ndim == 0:
        found = np.full(len(labels), found, np.float32)
    if found.shape != (len(labels),):
        raise refused(column, where, f"holds {len(found)} numbers for {len(labels)} tokens; give one for each")
    return of_targets(column, found, labels, where, begins)


def of_prepared(column: Column, value: Any, labels: Sequence[int], where: str) -> Numbers:
    """Take what `of_row` has made of rows that were cut, joined or packed since: NaN is for first tokens."""
    found = parsed(column, value, where)
    given = found.shape == (len(labels),)
    return of_row(column, value, labels, where, np.flatnonzero(np.isnan(found)) if given else (0,))


def beginnings(row: Mapping[str, Any], length: int) -> NDArray[np.int64]:
    """Return where sequences begin in a row of so many tokens, as far as it says that several are packed into it.

    By `seq_lengths`, or for each token: `seq_idx`, an attention mask of numbers above 1, `position_ids` that begin
    again.
    """
    if row.get("seq_lengths") is not None:
        return np.cumsum([0, *row["seq_lengths"]])[:-1]
    given = {key: np.asarray(row[key]) for key in PACKED if key in row}
    per_token = {key: value for key, value in given.items() if value.shape == (length,) and value.dtype.kind in "iu"}
    starts_S = np.arange(length) == 0
    for key, value_S in per_token.items():
        if key == "position_ids":
            starts_S |= value_S == 0
        elif key == "seq_idx" or value_S.max(initial=0) > 1:
            starts_S[1:] |= value_S[1:] != value_S[:-1]
    return np.flatnonzero(starts_S)


def of_text(column: Column, value: Any, labels: Sequence[int], where: str) -> Numbers:
    """Make a number for each token of a row of text, of one, or of as many as it has tokens; else as `of_row`."""
    if np.ndim(value) and len(value) != len(labels):
        raise refused(
            column,
            where,
            f"is a list of {len(value)}, and the row a text of {len(labels)} tokens; give one number, or one for each "
            "token",
        )
    return of_row(column, value, labels, where)


def cut(example: Mapping[str, Any], keys: Sequence[str], end: str) -> dict[str, Sequence[float]]:
    """Return what is left of a row's columns where its tokens were cut, at the `start` or the `end`."""
    left = len(example[TOKENS])
    given = {key: example[key] for key in keys}
    return {key: row[:left] if end == "end" else row[max(len(row) - left, 0) :] for key, row in given.items()}


def numbered(dataset: Any) -> Any:
    """Write into each row of a `datasets.Dataset` which one it is, as `ROW`: errors name it."""
    return dataset.map(_number, with_indices=True)


def place(row: int, dataset: str) -> str:
    """Say which row it is, for messages."""
    return f"row {row} of the dataset `{dataset}`"


def _number(example: Mapping[str, Any], row: int) -> dict[str, int]:
    del example
    return {ROW: row}


def parsed(column: Column, value: Any, where: str) -> Numbers:
    """Return one number or a list of them, None as NaN."""
    if value is None:
        raise refused(column, where, "is None; give a number")
    try:
        given = np.asarray(value)
    except ValueError:
        given = np.asarray("ragged")
    if given.dtype.kind == "O":
        wrong = [entry for entry in given.ravel() if entry is not None and not _is_number(entry)]
        if not wrong:
            given = given.astype(np.float64)
    if given.dtype.kind not in "iuf" or given.ndim > 1:
        raise refused(column, where, f"holds {_shown(value)}; give a number, or a list of numbers")
    with np.errstate(over="ignore"):
        return given.astype(np.float32)


def of_targets(
    column: Column,
    found_S: Numbers,
    labels: Sequence[int],
    where: str,
    begins: Sequence[int] | NDArray[np.int64] = (0,),
) -> Numbers:
    """Refuse numbers that cannot be used; what is no target gets 1."""
    target_S = np.asarray(labels) != IGNORE_INDEX
    predicted_S = target_S.copy()
    predicted_S[[at for at in begins if at < len(predicted_S)]] = False
    wrong_S = ~np.isfinite(found_S)
    if column.factor:
        wrong_S |= found_S < 0
    wrong_S &= predicted_S
    if wrong_S.any():
        at = int(wrong_S.argmax())
        allowed = "a finite number of 0 or more" if column.factor else "a finite number"
        what = "no number (None or NaN)" if np.isnan(found_S[at]) else f"{found_S[at]:g}"
        raise refused(column, where, f"has {what} for token {at}, which is trained; give {allowed}")
    return np.where(target_S, found_S, np.float32(1))


def refused(column: Column, where: str, why: str) -> ConflictError:
    """Make the error of a column whose numbers cannot be used."""
    return ConflictError([f"{where}: the column `{column.name}` {why}."])


def _is_number(entry: Any) -> bool:
    return isinstance(entry, (int, float, np.number)) and not isinstance(entry, bool)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
