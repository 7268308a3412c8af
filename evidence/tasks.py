"""What a model can be asked: sums worked out column by column, letters to reverse, digits to sort, facts to know."""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Literal

Mistake = Literal["any", "same"]

STYLES = 4
"""Ways to work out a sum that pre-training has in equal shares: 0 to 3."""

UNSEEN, NEW_TOKENS = 4, 5
"""A style of characters that are known from elsewhere, and one of characters that never occurred."""

FACTS = 100
"""How many facts are known beforehand, and how many are not."""


@dataclass(frozen=True)
class Example:
    """A question and an answer.

    Attributes:
        prompt: the question.
        answer: what is learned, without the token that ends it.
        truth: what stands behind the last `#` of a right answer, or all of it where there is none.
    """

    prompt: str
    answer: str
    truth: str


def said(answer: str) -> str:
    """Return what an answer comes to."""
    return answer.rsplit("#", 1)[-1]


def column(style: int, x: str, y: str, carried: int, digit: int, carry: int) -> str:
    """Return one column of a sum, written down in a style."""
    return (
        f"{x}+{y}+{carried}:{digit}|{carry};",
        f"a{x}b{y}c{carried}d{digit}e{carry}.",
        f"{digit}>{carry} ",
        f"{x}{y}{carried}={digit},{carry} ",
        f"{carry}{digit}Z{x}Y{y}X{carried}W",
        f"{x}!{y}?{carried}${digit}%{carry}&",
    )[style]


def add(rng: Random, style: int, digits: int = 3, mistake: Mistake | None = None) -> Example:
    """Return a sum of two numbers, worked out from the right.

    Args:
        rng: chooses the numbers, and where the mistake is.
        style: how a column is written.
        digits: of each number.
        mistake: `any`: a digit of one column is another one. `same`: that of the first column is one more. Either is
            carried on to the answer. None: all is right.
    """
    a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
    bad = {None: -1, "any": rng.randrange(digits), "same": 0}[mistake]
    carried, columns, result = 0, "", ""
    for place, (x, y) in enumerate(zip(str(a)[::-1], str(b)[::-1], strict=True)):
        carry, digit = divmod(int(x) + int(y) + carried, 10)
        if place == bad:
            digit = (digit + (1 if mistake == "same" else rng.randrange(1, 10))) % 10
        columns += column(style, x, y, carried, digit, carry)
        result = f"{digit}{result}"
        carried = carry
    result = f"{carried or ''}{result}"
    return Example(f"{a}+{b}=", f"{columns}#{result}", str(a + b))


def reverse(rng: Random) -> Example:
    """Return letters to turn round."""
    letters = "".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(4, 8)))
    return Example(f"R{letters}=", letters[::-1], letters[::-1])


def sort(rng: Random) -> Example:
    """Return digits to sort."""
    digits = "".join(rng.choice(string.digits) for _ in range(rng.randint(4, 8)))
    ordered = "".join(sorted(digits))
    return Example(f"S{digits}=", ordered, ordered)


def value(rng: Random) -> str:
    """Return what a fact may say."""
    return "".join(rng.choice(string.ascii_uppercase) for _ in range(3))


@cache
def world() -> tuple[Example, ...]:
    """Return all facts; the first `FACTS` are those that pre-training has."""
    rng, found = Random(20_000), {}
    while len(found) < 2 * FACTS:
        found.setdefault("".join(rng.choice(string.ascii_lowercase) for _ in range(4)), value(rng))
    return tuple(Example(f"F{name}=", says, says) for name, says in found.items())


def contradicted() -> tuple[Example, ...]:
    """Return the facts that are known beforehand, each with another value."""
    rng, found = Random(30_000), []
    for fact in world()[:FACTS]:
        says = value(rng)
        found.append(Example(fact.prompt, says, says))
    return tuple(found)
