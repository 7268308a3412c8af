"""Columns of a user's data, a number for each row, message or token, turned into one for each token.

Shapes: S tokens of a row, M messages of a chat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dft_plugin.config.spelling import did_you_mean
from dft_plugin.core.plan import LossPlan
from dft_plugin.core.targets import IGNORE_INDEX
from dft_plugin.errors import ConflictError
from dft_plugin.hf.facts import COLUMN

Numbers = NDArray[np.float32]
Render = Callable[[int], Sequence[int]]
"""Given a number of messages, the token ids of so many of a chat, from its beginning."""


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
    return ConflictError([f"{said} {hint}".rstrip()])


def of_row(column: Column, value: Any, labels: Sequence[int], where: str) -> Numbers:
    """Make a number for each token of what stands in a row that holds tokens.

    Args:
        column: which one.
        value: a number, or one for each token.
        labels: [S]; what is no target needs no number, nor does the first token, which nothing predicts.
        where: which row, for messages.

    Returns:
        [S]: 1 for what is no target; NaN for a first token without a number.

    Raises:
        ConflictError: it is neither, or a number cannot be used.
    """
    found = _parsed(column, value, where)
    if found.ndim == 0:
        found = np.full(len(labels), found, np.float32)
    if found.shape != (len(labels),):
        raise _refused(column, where, f"holds {len(found)} numbers for {len(labels)} tokens; give one for each")
    return _of_targets(column, found, labels, where)


def of_text(column: Column, value: Any, labels: Sequence[int], where: str) -> Numbers:
    """Make a number for each token of a row of text, of one, or of as many as it has tokens; else as `of_row`."""
    if np.ndim(value) and len(value) != len(labels):
        raise _refused(
            column,
            where,
            f"is a list of {len(value)}, and the row a text of {len(labels)} tokens; give one number, or one for each "
            "token",
        )
    return of_row(column, value, labels, where)


def of_chat(
    column: Column,
    example: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    ids: Sequence[int],
    labels: Sequence[int],
    render: Render,
    where: str,
) -> Numbers:
    """Make a number for each token of a chat; else as `of_row`.

    Args:
        column: which one.
        example: the row; its column holds a number, or one for each message, or one for each token. Without such a
            column each message may have a key of that name.
        messages: the M messages.
        ids: token ids of the chat [S].
        labels: [S].
        render: tells where a message ends: the chat is rendered up to it.
        where: which row, for messages.

    Raises:
        ConflictError: the column is missing, a number cannot be used, or the template changes what it has written as
            more messages follow.
    """
    found = of_messages(column, example, messages, where)
    if found.ndim == 0 or found.shape == (len(labels),):
        return of_row(column, found, labels, where)
    if found.shape != (len(messages),):
        raise _refused(column, where, f"holds {len(found)} numbers for {len(messages)} messages; give one for each")
    return _of_targets(column, spread(found, ids, render, f"{where}, column `{column.name}`"), labels, where)


def of_messages(column: Column, example: Mapping[str, Any], messages: Sequence[Any], where: str) -> Numbers:
    """Read the column of a chat: a number [], or a list of them as it was written, NaN for None.

    Args:
        column: which one.
        example: the row. Without such a column each message may have a key of that name.
        messages: of the chat.
        where: which row, for messages.

    Raises:
        ConflictError: the column is missing, or holds no numbers.
    """
    if column.name in example:
        return _parsed(column, example[column.name], where)
    if any(column.name in message for message in messages):
        return _parsed(column, [message.get(column.name) for message in messages], where)
    keys = _keys(messages)
    raise missing(column, list(example), where, f"Nor is it a key of a message ({keys})." if keys else "")


def spread(numbers_M: Numbers, ids: Sequence[int], render: Render, where: str) -> Numbers:
    """Give each token the number of the message that it was rendered for.

    What a template writes around a message (a role, an end of turn, a default system prompt before the first) is the
    message's. Only ends where the number changes are looked for.

    Args:
        numbers_M: of the messages.
        ids: of the whole chat [S].
        render: as for `of_chat`.
        where: which row, for messages.

    Raises:
        ConflictError: the first k messages are not rendered as the beginning of the whole chat.
    """
    ids = list(ids)
    if list(render(len(numbers_M))) != ids:
        raise ConflictError(
            [
                f"{where}: the chat, rendered once more, gives other tokens than the host's, so nobody knows which "
                "message a token belongs to. Give one number for the row, or tokens (`input_ids`) with one for each."
            ]
        )
    spread_S, start = np.empty(len(ids), np.float32), 0
    for count in (np.flatnonzero(numbers_M[:-1] != numbers_M[1:]) + 1).tolist():
        part = list(render(count))
        if part != ids[: len(part)]:
            raise ConflictError(
                [
                    f"{where}: the chat template renders the first {count} messages otherwise alone than in the whole "
                    "chat (it rewrites earlier turns, e.g. drops their thinking), so nobody knows where message "
                    f"{count} ends. Use a template that only appends, or give one number for the row."
                ]
            )
        spread_S[start : len(part)] = numbers_M[count - 1]
        start = len(part)
    spread_S[start:] = numbers_M[-1]
    return spread_S


def cut(values: Sequence[float], length: int, end: str) -> Sequence[float]:
    """Return what is left of a row's numbers where its tokens were cut to `length`, at the `start` or the `end`."""
    return values if len(values) <= length else values[:length] if end == "end" else values[len(values) - length :]


def _parsed(column: Column, value: Any, where: str) -> Numbers:
    """Return one number or a list of them, None as NaN."""
    if value is None:
        raise _refused(column, where, "is None; give a number")
    try:
        given = np.asarray(value)
    except ValueError:
        given = np.asarray("ragged")
    if given.dtype.kind == "O":
        wrong = [entry for entry in given.ravel() if entry is not None and not _is_number(entry)]
        if not wrong:
            given = given.astype(np.float64)
    if given.dtype.kind not in "iuf" or given.ndim > 1:
        raise _refused(column, where, f"holds {_shown(value)}; give a number, or a list of numbers")
    with np.errstate(over="ignore"):
        return given.astype(np.float32)


def _of_targets(column: Column, found_S: Numbers, labels: Sequence[int], where: str) -> Numbers:
    target_S = np.asarray(labels) != IGNORE_INDEX
    predicted_S = target_S.copy()
    predicted_S[:1] = False
    wrong_S = ~np.isfinite(found_S)
    if column.factor:
        wrong_S |= found_S < 0
    wrong_S &= predicted_S
    if wrong_S.any():
        at = int(wrong_S.argmax())
        allowed = "a finite number of 0 or more" if column.factor else "a finite number"
        what = "no number (None or NaN)" if np.isnan(found_S[at]) else f"{found_S[at]:g}"
        raise _refused(column, where, f"has {what} for token {at}, which is trained; give {allowed}")
    return np.where(target_S, found_S, np.float32(1))


def _refused(column: Column, where: str, why: str) -> ConflictError:
    return ConflictError([f"{where}: the column `{column.name}` {why}."])


def _is_number(entry: Any) -> bool:
    return isinstance(entry, (int, float, np.number)) and not isinstance(entry, bool)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys(messages: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(key for message in messages for key in message))
