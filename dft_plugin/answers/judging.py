"""Answers judged, those chosen that are kept, and the rows that are written of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from dft_plugin.answers.questions import Question

Form = Literal["messages", "prompt-completion", "text"]


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: without special tokens.
        tokens: how many it is of, its end among them.
        ended: whether the model ended it; else it was cut.
    """

    text: str
    tokens: int
    ended: bool


@dataclass
class Counts:
    """What was done so far; sums, so that a run can go on with them.

    Attributes:
        questions: that were answered.
        left_out: rows without a question, or without what the verifier or the model needs.
        answers: of the model.
        right: of these, in the verifier's eyes.
        cut: of these, at the longest that is allowed.
        tokens: of all answers.
        rows: that were written.
        solved: questions with a right answer.
    """

    questions: int = 0
    left_out: int = 0
    answers: int = 0
    right: int = 0
    cut: int = 0
    tokens: int = 0
    rows: int = 0
    solved: int = 0

    def as_json(self) -> dict[str, int]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Counts:
        """Read what `as_json` wrote."""
        return cls(**{one.name: int(given[one.name]) for one in fields(cls)})

    def line(self) -> str:
        """Return the summary."""
        if not self.answers:
            return f"{self.questions} questions, none answered; {self.left_out} rows left out"
        said = (
            f"{self.questions:,} questions, {self.answers:,} answers of {self.tokens / self.answers:.0f} tokens on "
            f"average: {self.right / self.answers:.1%} right ({self.solved:,} questions with a right one), "
            f"{self.cut / self.answers:.1%} cut; {self.rows:,} rows kept"
        )
        return f"{said}; {self.left_out:,} rows left out" if self.left_out else said


def kept(right: Sequence[str], keep: int | None) -> list[str]:
    """Return the answers that are kept.

    Args:
        right: those that are right, as they were sampled.
        keep: how many different ones at most; None: all, the same one as often as it was sampled.
    """
    return list(right) if keep is None else list(dict.fromkeys(right))[:keep]


def rows(asked: Question, answers: Sequence[str], form: Form) -> Iterator[dict[str, Any]]:
    """Yield a row for each answer, as hosts read it."""
    for answer in answers:
        said = {"role": "assistant", "content": answer}
        if form == "messages":
            yield {"messages": [*asked.messages, said]}
        elif form == "prompt-completion":
            yield {"prompt": list(asked.messages), "completion": [said]}
        else:
            yield {"prompt": asked.text, "completion": answer}


def pairs(
    asked: Question, right: Sequence[str], wrong: Sequence[str], keep: int | None, form: Form
) -> list[dict[str, Any]]:
    """Return rows of a right answer beside a wrong one, which DPO trains on; no answer is in two of them.

    Args:
        asked: the question.
        right: answers that ended and are right.
        wrong: answers that ended and are wrong; to one that was cut, a trainer would add the end that it lacks.
        keep: how many at most; None: as many as there are.
        form: `text` or not: messages.
    """
    every = list(zip(dict.fromkeys(right), dict.fromkeys(wrong), strict=False))[:keep]
    if form == "text":
        return [{"prompt": asked.text, "chosen": good, "rejected": bad} for good, bad in every]
    turns = list(asked.messages)
    return [
        {
            "prompt": turns,
            "chosen": [{"role": "assistant", "content": good}],
            "rejected": [{"role": "assistant", "content": bad}],
        }
        for good, bad in every
    ]
