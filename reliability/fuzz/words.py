"""Target `overrides`: words of a command line that change the loss, in every spelling, among a host's own."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from dft_plugin.config import reading
from reliability.fuzz.losses import catalogue
from reliability.fuzz.texts import SCALARS
from reliability.fuzz.values import weighted
from reliability.fuzz.verdict import Answered, Refused, judged, require

CONFIG = "loss: {name: dft, alpha: 0.25}\nlearning_rate: 1e-4\nmodel: {name: tiny}\n"


@dataclass(frozen=True)
class Line:
    """A command line.

    Attributes:
        words: as a shell hands them over.
        same: the same overrides spelt otherwise; None: they have one spelling.
    """

    words: tuple[str, ...]
    same: tuple[str, ...] | None = None


_OPTIONS = st.sampled_from(
    [(), ("name",), ("alpha",), ("floor",), ("kernel",), ("first", "for"), ("first", "name"), ("weights", "column")]
)
_USUAL = ["0.5", "1", "dft", "nll", "chunked", "20", "ratio", "{from: 0, to: 1, until: 0.5}", "", " ", "None"]
_VALUES = weighted((3, st.sampled_from(_USUAL)), (2, st.sampled_from(SCALARS)), (1, st.text(max_size=6)))


def _spelt(path: tuple[str, ...], value: str, spelling: int) -> tuple[str, ...]:
    dotted = ".".join(("loss", *path))
    if spelling == 0:
        return (f"{dotted}={value}",)
    if spelling == 1:
        return (f"--{dotted}={value}",)
    if spelling == 2:
        return (f"loss{''.join(f'[{part}]' for part in path)}={value}",)
    return (f"--{dotted}", value)


def _is_typed_apart(value: str) -> bool:
    """Say whether a value can stand behind a blank: no key, no `key=value`."""
    return not value.startswith("-") and "=" not in value


@st.composite
def _twins(draw: st.DrawFn) -> Line:
    words: list[str] = []
    same: list[str] = []
    for path in draw(st.lists(_OPTIONS, min_size=1, max_size=3, unique=True)):
        value = draw(_VALUES)
        spellings = range(4) if _is_typed_apart(value) else range(3)
        words += _spelt(path, value, draw(st.sampled_from(spellings)))
        same += _spelt(path, value, 0)
    return Line(tuple(words), tuple(same))


_KEYS = st.one_of(
    st.sampled_from(
        ["loss", "LOSS", "Loss", "loss_type", "losses", "loss.alpha", "loss[alpha]", "loss[alpha", "loss.."]
    ),
    st.sampled_from(
        ["loss.a.b.c", "loss__alpha", "learning_rate", "model.name", "no_loss", "no-cache", ".", "[]", "", "a"]
    ),
    st.sampled_from(["loss.weights.tokens.11", "loss.weights[tokens]", "loss.first", "loss]", "loss[", "loss.['x']"]),
    st.just("loss" + ".a" * 3000),
    st.text(max_size=5),
)
_WORD = st.one_of(
    st.tuples(
        st.sampled_from(["", "-", "--", "---", "+", "~", "--no-"]),
        _KEYS,
        st.sampled_from(["=", "", " ", ":"]),
        _VALUES,
    ).map("".join),
    _KEYS.map(lambda key: f"--{key}"),
    _VALUES,
)
LINES = weighted((2, _twins()), (1, st.lists(_WORD, max_size=5).map(lambda words: Line(tuple(words)))))
"""Command lines."""


@cache
def _config() -> Path:
    path = Path(tempfile.mkdtemp(prefix="dft-fuzz-")) / "config.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def check(line: Line) -> str:
    """Hold a command line to the property; returns `answered` or `refused`."""
    _check_flags(line)
    outcome = _load(line.words)
    if line.same is not None:
        twin = _load(line.same)
        require(
            type(outcome) is type(twin), f"{line.words} and {line.same} are not taken alike: {outcome}, {twin}"[:600]
        )
        if isinstance(outcome, Answered) and isinstance(twin, Answered):
            require(repr(outcome.value.loss) == repr(twin.value.loss), f"{line.words} and {line.same} differ")
            _require_given(line.same, outcome.value.loss)
    if not isinstance(outcome, Answered) or not outcome.value.names_loss:
        return "refused" if isinstance(outcome, Refused) else "answered"
    judged(lambda: catalogue().settings(outcome.value.request().loss), ["`loss"])
    return "answered"


def _load(words: tuple[str, ...]) -> Answered | Refused:
    return judged(lambda: reading.load(_config(), list(words)), ["override", "`loss", "config"])


def _check_flags(line: Line) -> None:
    """Require the words that are a host's to stay as they were typed, all of them and in their order."""
    outcome = judged(lambda: reading.of_flags(line.words), ["override", "`loss", "config"])
    if isinstance(outcome, Answered):
        theirs = iter(line.words)
        require(all(word in theirs for word in outcome.value.args), f"{outcome.value.args} are not of {line.words}")


def _require_given(words: tuple[str, ...], loss: Any) -> None:
    """Require each value to stand where its path leads, as PyYAML reads it, unless a longer path reached into it."""
    pairs = [(word.partition("=")[0].split(".")[1:], word.partition("=")[2]) for word in words]
    for path, text in pairs:
        if any(other != path and other[: len(path)] == path for other, _ in pairs):
            continue
        found = loss
        for part in path:
            # `loss.first.name` may have made a mapping of the word that stood there.
            found = found[part]
        given = yaml.safe_load(text)
        require(repr(found) == repr(given), f"{'.'.join(path)}: {text[:100]!r} became {repr(found)[:200]}")
