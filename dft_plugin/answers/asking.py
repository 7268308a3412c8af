"""Questions asked in batches, answers judged, rows written: never more than a batch is held."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from dft_plugin.answers.judging import Answer, Form, kept, pairs, rows
from dft_plugin.answers.output import Output
from dft_plugin.answers.questions import Question, question
from dft_plugin.answers.sources import Source
from dft_plugin.answers.verifying import Verifier, extracted, scored
from dft_plugin.errors import SettingsError


class Engine(Protocol):
    """What answers."""

    def unfit(self, asked: Question) -> str | None:
        """Say why a question cannot be answered; None: it can."""

    def answers(self, asked: Sequence[Question], k: int) -> list[list[Answer]]:
        """Return k answers to each question, the same ones whatever was asked before."""


@dataclass(frozen=True)
class Plan:
    """What is done with each row.

    Attributes:
        column: where the question stands; None: found by its name.
        k: answers to each.
        together: questions of a batch.
        limit: rows of the data at most; None: all.
        verifier: says whether an answer is right.
        pattern: what of an answer is verified, the last match of it; None: all of it.
        least: the score from which an answer is kept.
        keep: how many different answers to a question at most; None: all.
        form: of the rows.
        pairs: whether pairs are written.
    """

    column: str | None
    k: int
    together: int
    limit: int | None
    verifier: Verifier
    pattern: re.Pattern[str] | None
    least: float
    keep: int | None
    form: Form
    pairs: bool


def first_question(source: Source, plan: Plan) -> Question:
    """Return the first question of the data, so that what is wrong with all of them is said before a model is loaded.

    Raises:
        SettingsError: there is none among the first hundred rows.
    """
    seen: Mapping[str, Any] = {}
    for number, row in enumerate(islice(source.rows(), 100)):
        found = question(number, row, plan.column)
        if found is not None:
            return found
        seen = seen or row
    if not seen:
        raise SettingsError([f"{source.path} has no rows."])
    where = f"in the column {plan.column}" if plan.column else "in a column of a known name"
    raise SettingsError(
        [f"{source.path}: no question {where}. Its columns are {', '.join(seen)}; name one with --question."]
    )


def ask(source: Source, plan: Plan, engine: Engine, output: Output, advance: Callable[[int], None]) -> None:
    """Go through the data from where the output is, and write what is kept.

    Args:
        source: the data.
        plan: what is done with a row.
        engine: what answers.
        output: is open.
        advance: told of rows that are dealt with.

    Raises:
        SettingsError: the data cannot be read, or the verifier failed.
    """
    for begin, batch in _batches(source, plan, output.done):
        found: list[dict[str, Any]] = []
        asked = [one for number, row in batch if (one := _askable(number, row, plan, engine)) is not None]
        output.counts.left_out += len(batch) - len(asked)
        for one, given in zip(asked, engine.answers(asked, plan.k) if asked else [], strict=True):
            found += _judged(one, given, plan, output)
        output.add(found, begin + len(batch))
        advance(len(batch))
    output.finish()


def _batches(source: Source, plan: Plan, done: int) -> Iterator[tuple[int, list[tuple[int, Mapping[str, Any]]]]]:
    """Yield rows with their numbers; a run that goes on has the same batches as one that never stopped."""
    every = iter(islice(enumerate(source.rows()), done, plan.limit))
    begin = done
    while batch := list(islice(every, plan.together - begin % plan.together)):
        yield begin, batch
        begin += len(batch)


def _askable(number: int, row: Mapping[str, Any], plan: Plan, engine: Engine) -> Question | None:
    asked = question(number, row, plan.column)
    if asked is None or engine.unfit(asked) is not None:
        return None
    return asked if plan.verifier.missing(asked) is None else None


def _judged(asked: Question, given: Sequence[Answer], plan: Plan, output: Output) -> list[dict[str, Any]]:
    counts = output.counts
    judged = [(one, scored(plan.verifier, asked, extracted(one.text, plan.pattern)) >= plan.least) for one in given]
    # One that was cut has no end to learn, whatever stands in it.
    right = [one.text for one, good in judged if good and one.ended]
    counts.questions += 1
    counts.answers += len(given)
    counts.tokens += sum(one.tokens for one in given)
    counts.cut += sum(not one.ended for one in given)
    counts.right += len(right)
    counts.solved += bool(right)
    if plan.pairs:
        wrong = [one.text for one, good in judged if not good and one.ended]
        return pairs(asked, right, wrong, plan.keep, plan.form)
    return list(rows(asked, kept(right, plan.keep), plan.form))
