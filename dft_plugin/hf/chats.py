"""Columns of a chat: a number for each message, turned into one for each token that was rendered for it.

Shapes: S tokens of a row, M messages of a chat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dft_plugin.errors import ConflictError
from dft_plugin.hf.columns import (
    Column,
    Numbers,
    beginnings,
    missing,
    of_row,
    of_targets,
    of_text,
    parsed,
    refused,
)

Render = Callable[[int], Sequence[int]]
"""Given a number of messages, the token ids of so many of a chat, from its beginning."""


@dataclass(frozen=True)
class Chat:
    """A row that a host tokenises as a chat.

    Attributes:
        messages: the M messages, as the user wrote them.
        render: tells where a message ends: the chat is rendered up to it.
        more: how many messages the host puts before them, a system prompt of its own say; below 0: how many of them
            it leaves out at the beginning.
    """

    messages: Sequence[Mapping[str, Any]]
    render: Render
    more: int = 0


def of_example(
    columns: Sequence[Column],
    example: Mapping[str, Any],
    ids: Sequence[int],
    labels: Sequence[int],
    where: str,
    *,
    chat: Chat | None = None,
    tokenised: bool = False,
) -> dict[str, Numbers]:
    """Make the columns of a row that a host has tokenised, by their keys; each else as `of_row`.

    Args:
        columns: which.
        example: the row, as the user knows it.
        ids: its token ids [S].
        labels: [S].
        where: which row, for messages.
        chat: what was rendered; None: the row is a text, or was tokenised.
        tokenised: whether the user's data holds tokens.

    Raises:
        ConflictError: a column is missing, a number cannot be used, or nobody knows which message a token is of.
    """
    begins = beginnings(example, len(labels)) if tokenised else (0,)
    found = {}
    for column in columns:
        if column.key in example:
            found[column.key] = of_row(column, example[column.key], labels, where, begins)
        elif chat is not None:
            found[column.key] = of_chat(column, example, chat, ids, labels, where)
        elif column.name not in example:
            raise missing(column, list(example), where)
        elif tokenised:
            found[column.key] = of_row(column, example[column.name], labels, where, begins)
        else:
            found[column.key] = of_text(column, example[column.name], labels, where)
    return found


def of_chat(
    column: Column, example: Mapping[str, Any], chat: Chat, ids: Sequence[int], labels: Sequence[int], where: str
) -> Numbers:
    """Make a number for each token of a chat; else as `of_row`.

    Args:
        column: which one.
        example: the row; its column holds a number, or one for each message, or one for each token. Without such a
            column each message may have a key of that name.
        chat: what was rendered.
        ids: token ids of the chat [S].
        labels: [S].
        where: which row, for messages.

    Raises:
        ConflictError: the column is missing, a number cannot be used, or the template changes what it has written as
            more messages follow.
    """
    found, count = of_messages(column, example, chat.messages, where), len(chat.messages)
    if found.ndim == 0 or found.shape == (len(labels),):
        return of_row(column, found, labels, where)
    if found.shape != (count,):
        raise refused(column, where, f"holds {len(found)} numbers for {count} messages; give one for each")
    before = np.full(max(chat.more, 0), np.nan, np.float32)
    found = np.concatenate([before, found[max(-chat.more, 0) :]])
    return of_targets(column, spread(found, ids, chat.render, f"{where}, column `{column.name}`"), labels, where)


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
        return parsed(column, example[column.name], where)
    if any(column.name in message for message in messages):
        return parsed(column, [message.get(column.name) for message in messages], where)
    keys = _keys(messages)
    raise missing(column, list(example), where, f"Nor is it a key of a message ({keys})." if keys else "")


def of_made_messages(
    column: Column, example: Mapping[str, Any], messages: Sequence[Any], made: int, where: str, *, folded: bool
) -> Numbers:
    """Read the column of a row of which a host makes messages of its own: a number for each of these.

    Args:
        column: which one.
        example: the row.
        messages: what the user wrote.
        made: how many messages the host has made.
        where: which row, for messages.
        folded: whether the host puts the first message, a system prompt, into the next one, as which it counts.

    Raises:
        ConflictError: the column is missing, holds no numbers, or not one for each message.
    """
    found = of_messages(column, example, messages, where)
    if found.ndim == 0 or not made:
        # Without messages: a row that the host drops, since it is broken.
        return np.full(made, found if found.ndim == 0 else 0, np.float32)
    if folded and len(found) == made + 1:
        found = found[1:]
    if len(found) != made:
        why = f"holds {len(found)} numbers, and {made} messages were made of the row; give one for each (answers of"
        raise refused(column, where, f"{why} several tools in a row are one)")
    return found


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


def _keys(messages: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(key for message in messages for key in message))
