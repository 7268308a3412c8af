"""A row as a question: messages, or a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLUMNS = ("messages", "conversations", "prompt", "question", "problem", "instruction", "query")
"""Where a question may stand; the first that a row has is taken."""

TRUTHS = ("answer", "truth", "ground_truth", "solution")
"""Where the right answer may stand."""

_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Question:
    """What a model is asked.

    Attributes:
        number: of its row, from 0.
        text: the last turn of the user's, or all of it.
        messages: the turns up to there.
        row: all that stands in the row.
    """

    number: int
    text: str
    messages: tuple[Mapping[str, str], ...]
    row: Mapping[str, Any]

    def truth(self, column: str | None) -> str | None:
        """Return the right answer; None where the row has none.

        Args:
            column: where it stands; None: in the first of `TRUTHS`.
        """
        name = column or next((one for one in TRUTHS if one in self.row), None)
        value = None if name is None else self.row.get(name)
        return None if value is None else str(value)


def question(number: int, row: Mapping[str, Any], column: str | None) -> Question | None:
    """Return a row as a question; None where there is none in it.

    Args:
        number: of the row.
        row: as it was read.
        column: where the question stands; None: in the first of `COLUMNS`.
    """
    name = column or next((one for one in COLUMNS if row.get(one)), None)
    value = None if name is None else row.get(name)
    if isinstance(value, str) and value.strip():
        further = row.get("input") if name == "instruction" else None
        text = f"{value}\n{further}" if further else value
        return Question(number, text, ({"role": "user", "content": text},), row)
    if isinstance(value, Sequence) and not isinstance(value, str):
        turns = _asked([_turn(one) for one in value if isinstance(one, Mapping)])
        if turns:
            return Question(number, turns[-1]["content"], tuple(turns), row)
    return None


def _turn(one: Mapping[str, Any]) -> dict[str, str]:
    role = str(one.get("role", one.get("from", "user")))
    return {"role": _ROLES.get(role, role), "content": str(one.get("content", one.get("value", "")))}


def _asked(turns: Sequence[dict[str, str]]) -> Sequence[dict[str, str]]:
    """Return the turns up to the last one of the user's."""
    last = max((number for number, turn in enumerate(turns) if turn["role"] == "user"), default=None)
    return [] if last is None else turns[: last + 1]
