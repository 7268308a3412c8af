"""Values of every type that YAML, JSON or a caller of Python can put somewhere."""

from __future__ import annotations

import datetime
import decimal
import fractions
from typing import Any

from hypothesis import strategies as st

TOO_LONG = "9" * 5000
"""More digits than Python turns into an integer."""

WORDS = [
    *("", " ", "~", "null", "None", "true", "on", "No", "yes", "auto", "logits", "chunked", "blocked", "reference"),
    *("dft", "nll", "DFT", "dtf", "sft", "dft(alpha=1)", "eos", "special", "added", "top1", "entropy", "ratio"),
    *("base", "start", "copy", "columns", "same", "allow", "nan", "inf", "-inf", "1e-2", "1_0", "0x_", "0x10", "1:30"),
    *("-0", "+1", ".5", "5.", "1e400", "½", "٣", "\ud800", "\x00", "\x85", "\u2028", "é", "{", "}", "[", "loss", "="),
    *(TOO_LONG, "a" * 3000),
]

NUMBERS: list[Any] = [
    *(
        0,
        1,
        -1,
        2,
        7,
        100,
        101,
        1 << 20,
        (1 << 20) + 1,
        1 << 31,
        1 << 63,
        -(1 << 63) - 1,
        1 << 64,
        10**400,
        -(10**400),
    ),
    *(0.0, -0.0, 0.3, 0.5, 1.0, 1.5, -0.5, 1e-300, 5e-324, 1e308, float("nan"), float("inf"), -float("inf")),
    *(True, False, decimal.Decimal("0.5"), decimal.Decimal("NaN"), fractions.Fraction(1, 3), 1 + 2j),
]


def own_twin() -> list[Any]:
    """Return a list that holds itself."""
    inner: list[Any] = []
    inner.append(inner)
    return inner


def own_mapping() -> dict[str, Any]:
    """Return a mapping that holds itself."""
    inner: dict[str, Any] = {"name": "dft"}
    inner["alpha"] = inner
    return inner


def deep() -> list[Any]:
    """Return a list inside 5000 others."""
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    return value


OBJECTS = [
    *(lambda: b"\xff", lambda: bytearray(b"dft"), lambda: {1, 2}, lambda: frozenset({"eos"}), object, lambda: object),
    *(lambda: datetime.date(2026, 11, 27), lambda: datetime.datetime(2026, 11, 27), lambda: print, lambda: range(3)),
    *(lambda: iter([1]), lambda: memoryview(b"ab"), lambda: NotImplemented, lambda: ...),
    *(own_twin, own_mapping, deep),
]

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(WORDS),
    st.sampled_from(NUMBERS),
)

KEYS = st.one_of(
    st.sampled_from(["name", "column", "tokens", "from", "to", "until", "for", "alpha", "eos", "</think>"]),
    st.text(max_size=5),
    st.integers(-2, 200_000),
    st.booleans(),
    st.none(),
    st.floats(),
    st.binary(max_size=3),
    st.just(datetime.date(2026, 11, 27)),
    st.tuples(st.integers(), st.text(max_size=2)),
)


def weighted(*parts: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """Draw from one of several, so often each; `one_of` looks through its like and gives every leaf the same share."""
    every = [strategy for weight, strategy in parts for _ in range(weight)]
    return st.integers(0, len(every) - 1).flatmap(lambda number: every[number])


ANYTHING = st.one_of(
    SCALARS,
    st.recursive(
        SCALARS,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.tuples(inner, inner),
            st.dictionaries(KEYS, inner, max_size=4),
        ),
        max_leaves=6,
    ),
    st.sampled_from(OBJECTS).map(lambda make: make()),
)
"""What may stand where another value is expected."""
