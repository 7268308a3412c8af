"""Questions, many answers to each, and which of these are right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from transformers import PreTrainedModel

from evidence import tasks
from evidence.alphabet import encode
from evidence.sampling import answers
from evidence.tasks import Example, said
from evidence.training import Wait

AT_ONCE = 512
"""Answers that are sampled together; more want memory."""

OFFSET = 100_000
"""Seeds of samples to train on are as far from those of the tests."""


@dataclass(frozen=True)
class Budget:
    """What every method may spend.

    Attributes:
        questions: that are asked.
        tries: answers to each.
        rows: answers of a step of the optimizer.
        rounds: of the methods that sample again.
        passes: samples of a problem where pass@k is measured, and problems for that.
    """

    questions: int = 256
    tries: int = 8
    rows: int = 32
    rounds: int = 4
    passes: tuple[int, int] = (16, 25)

    @property
    def steps(self) -> int:
        """Steps of the optimizer: as many answers are trained on as are sampled."""
        return self.questions * self.tries // self.rows


@dataclass(frozen=True)
class Asked:
    """A question and what a model answered.

    Attributes:
        question: with the right result.
        given: answers; None: one that did not end.
    """

    question: Example
    given: tuple[str | None, ...]

    @property
    def right(self) -> list[Example]:
        """Answers to train on; the same one twice where it was given twice."""
        return [
            Example(self.question.prompt, one, self.question.truth) for one in self._ended() if self._is_right(one)
        ]

    @property
    def wrong(self) -> list[str]:
        """Answers that ended, and are wrong."""
        return [one for one in self._ended() if not self._is_right(one)]

    def _ended(self) -> list[str]:
        return [one for one in self.given if one is not None]

    def _is_right(self, answer: str) -> bool:
        return said(answer) == self.question.truth


def questions(count: int, seed: int) -> list[Example]:
    """Return sums to ask; how they are worked out is the model's affair."""
    rng = Random(f"questions {seed}")
    return [tasks.add(rng, style=0) for _ in range(count)]


def ask(model: PreTrainedModel, asked: Sequence[Example], tries: int, seed: int, wait: Wait) -> list[Asked]:
    """Return answers at temperature 1.

    Args:
        model: in evaluation mode.
        asked: questions.
        tries: answers to each.
        seed: of the sampling.
        wait: is called before each batch.
    """
    prompts = [one.prompt for one in asked for _ in range(tries)]
    given: list[str | None] = []
    for begin in range(0, len(prompts), AT_ONCE):
        wait()
        batch = prompts[begin : begin + AT_ONCE]
        given += answers(model, batch, [1.0] * len(batch), OFFSET + seed * 1000 + begin // AT_ONCE)
    return [
        Asked(one, tuple(given[at : at + tries])) for at, one in zip(range(0, len(given), tries), asked, strict=True)
    ]


def tokens(answered: Iterable[str | None], cut: int) -> int:
    """Return how many tokens answers have, with their ends.

    Args:
        answered: None: one that did not end.
        cut: tokens of such a one.
    """
    return sum(cut if one is None else len(encode(one)) + 1 for one in answered)


@dataclass(frozen=True)
class Pair:
    """What DPO compares.

    Attributes:
        prompt: the question.
        chosen: a right answer.
        rejected: a wrong one that ended: TRL puts an end behind both.
    """

    prompt: str
    chosen: str
    rejected: str


def pairs(answered: Iterable[Asked], seed: int) -> Iterator[Pair]:
    """Yield pairs: no answer is in two of them, so that a question gives as many as it has of the rarer kind."""
    rng = Random(f"pairs {seed}")
    for one in answered:
        right, wrong = [good.answer for good in one.right], one.wrong
        rng.shuffle(right)
        rng.shuffle(wrong)
        for chosen, rejected in zip(right, wrong, strict=False):
            yield Pair(one.question.prompt, chosen, rejected)
