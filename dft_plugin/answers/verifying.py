"""Who says whether an answer is right: math-verify, reasoning-gym, or a function of the user's."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from dft_plugin.answers.questions import TRUTHS, Question
from dft_plugin.errors import SettingsError

MATH, GYM = "math-verify", "reasoning-gym"

_KNOWN = f"{MATH}, {GYM}, or MODULE:FUNCTION, your function of (question, answer, row)"


class Verifier(Protocol):
    """Who says whether an answer is right."""

    def missing(self, asked: Question) -> str | None:
        """Say what a row lacks, so that no answer to it can be judged; None: nothing."""

    def score(self, asked: Question, answer: str) -> Any:
        """Return a score, which `scored` looks at; 1 is right."""


def find(name: str, truth: str | None) -> Verifier:
    """Return a verifier.

    Args:
        name: what stands after `--verifier`.
        truth: the column of the right answer, where that is not found by its name.

    Raises:
        SettingsError: there is none of the name, or its package is not installed.
    """
    if name == MATH:
        return _Math(truth)
    if name == GYM:
        return _Gym()
    if ":" in name:
        return _Own(name)
    raise SettingsError([f"--verifier {name}: no such verifier. It is {_KNOWN}."])


def scored(verifier: Verifier, asked: Question, answer: str) -> float:
    """Return what a verifier says, and see that it is a number.

    Raises:
        SettingsError: it failed, or said something else.
    """
    try:
        score = verifier.score(asked, answer)
    except Exception as error:
        said = f"the verifier failed at row {asked.number}: {type(error).__name__}: {error}."
        raise SettingsError([f"{said} What was kept before is written; mend it and go on with --resume."]) from error
    # A bool is a number, and so is one of numpy's.
    if not isinstance(score, Real) or math.isnan(score):
        said = f"the verifier returned {score!r} for row {asked.number}; it is to return a bool or a number."
        raise SettingsError([said])
    return float(score)


def extracted(answer: str, pattern: re.Pattern[str] | None) -> str:
    """Return the last match of a pattern, its first group where it has one; without a pattern all of the answer."""
    if pattern is None:
        return answer
    found = None
    for found in pattern.finditer(answer):  # noqa: B007 - the last one is wanted
        pass
    return "" if found is None else found.group(1 if pattern.groups else 0) or ""


class _Math:
    """math-verify: results are compared as mathematics, whatever is written around them."""

    def __init__(self, truth: str | None) -> None:
        try:
            from math_verify import parse, verify
        except ModuleNotFoundError as error:
            said = f"--verifier {MATH}: the package math-verify is not here ({error})."
            raise SettingsError([f"{said} Run: pip install 'dft-plugin[math]'"]) from error
        self._parse, self._verify, self._truth = parse, verify, truth
        self._last: tuple[Question | None, Any] = (None, [])

    def missing(self, asked: Question) -> str | None:
        """It wants a right answer that can be read."""
        where = self._truth or " or ".join(TRUTHS)
        return None if self._gold(asked) else f"no right answer that {MATH} reads in {where}"

    def score(self, asked: Question, answer: str) -> float:
        """Return 1 where the last result of an answer is the right one."""
        return float(self._verify(self._gold(asked), self._parse(answer)))

    def _gold(self, asked: Question) -> Any:
        if self._last[0] is not asked:
            right = asked.truth(self._truth)
            # A result may stand there bare, and LaTeX is read between dollars alone.
            found = [] if right is None else self._parse(right) or self._parse(f"${right}$")
            self._last = (asked, found)
        return self._last[1]


class _Gym:
    """reasoning-gym: the dataset that made a question scores the answer."""

    def __init__(self) -> None:
        try:
            from reasoning_gym import get_score_answer_fn
        except ModuleNotFoundError as error:
            said = f"--verifier {GYM}: the package reasoning-gym is not here ({error})."
            raise SettingsError([f"{said} Run: pip install 'dft-plugin[gym]'"]) from error
        self._scorer = get_score_answer_fn

    def missing(self, asked: Question) -> str | None:
        """It wants its own entry."""
        if _entry(asked.row) is None:
            return "no entry of reasoning-gym with `answer` and `metadata.source_dataset`"
        return None

    def score(self, asked: Question, answer: str) -> float:
        """Return what the dataset says."""
        found = _entry(asked.row)
        return 0.0 if found is None else float(self._scorer(found[0])(answer, found[1]))


def _entry(row: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """Return the name of a dataset of reasoning-gym, and its entry: the row itself, or what stands in it."""
    entry = row.get("entry", row)
    metadata = entry.get("metadata") if isinstance(entry, Mapping) else None
    inside = metadata.get("source_dataset") if isinstance(metadata, Mapping) else None
    name = inside or row.get("dataset")
    if isinstance(entry, Mapping) and "answer" in entry and isinstance(name, str):
        return name, entry
    return None


class _Own:
    """A function of the user's."""

    def __init__(self, name: str) -> None:
        module, _, function = name.partition(":")
        here = str(Path.cwd())
        # As `python -m` has it.
        if here not in sys.path:
            sys.path.insert(0, here)
        try:
            self._function = getattr(import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            said = f"--verifier {name}: {error}. Give MODULE:FUNCTION as Python imports it from here."
            raise SettingsError([said]) from error
        if not callable(self._function):
            kind = type(self._function).__name__
            raise SettingsError([f"--verifier {name} is a {kind}, and no function of (question, answer, row)."])

    def missing(self, asked: Question) -> str | None:
        """The function looks at the row itself."""
        return None

    def score(self, asked: Question, answer: str) -> Any:
        """Return what the function says."""
        return self._function(asked.text, answer, asked.row)
