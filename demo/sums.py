"""Sums worked out line by line, some of them with a slip, and the answer that a reply ends with."""

import re
from random import Random

OFF_BY = (-3, -2, -1, 1, 2, 3, 10, -10)
"""How far off a result is where one slips."""


def worked_out(expression: str, off: int, rng: Random) -> str:
    """Return a sum from left to right, an operation a line; the result of one is off by so much, and carried on."""
    first, *rest = expression.split()
    total, lines = int(first), []
    operations = list(zip(rest[::2], rest[1::2], strict=True))
    bad = rng.randrange(len(operations)) if off else -1
    for place, (sign, term) in enumerate(operations):
        result = (total + int(term) if sign == "+" else total - int(term)) + (off if place == bad else 0)
        lines.append(f"{total} {sign} {term} = {result}")
        total = result
    return "\n".join([*lines, f"The answer is {total}."])


def slip(share: float, rng: Random) -> int:
    """Return how far off a demonstration is: 0, or, in that share of the cases, one of `OFF_BY`."""
    return rng.choice(OFF_BY) if rng.random() < share else 0


def final_number(reply: str) -> str:
    """Return the answer of a reply, whatever its wording: its last number."""
    numbers = re.findall(r"-?\d+", reply)
    return numbers[-1] if numbers else ""
