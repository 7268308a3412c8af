"""What a model is fine-tuned on, and what it is asked afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from evidence import tasks
from evidence.tasks import Example, Mistake

Kind = Literal["sums", "new facts", "half of the facts new", "facts contradicted"]


@dataclass(frozen=True)
class Demonstrations:
    """The dials of a training set.

    Attributes:
        kind: of what.
        style: how sums are worked out.
        wrong: share of the demonstrations with a wrong step, or a wrong value.
        mistake: which, see `tasks.add`.
        rows: how many there are.
    """

    kind: Kind = "sums"
    style: int = 0
    wrong: float = 0.0
    mistake: Mistake = "any"
    rows: int = 2000

    def draw(self, seed: int) -> list[Example]:
        """Return the training set."""
        rng = Random(f"demonstrations {seed}")
        return [self._one(rng) for _ in range(self.rows)]

    def _one(self, rng: Random) -> Example:
        wrong = rng.random() < self.wrong
        if self.kind == "sums":
            return tasks.add(rng, self.style, mistake=self.mistake if wrong else None)
        fact = rng.choice(self.facts())
        return Example(fact.prompt, tasks.value(rng), fact.truth) if wrong else fact

    def facts(self) -> Sequence[Example]:
        """Return the facts that are taught."""
        known, new = tasks.world()[: tasks.FACTS], tasks.world()[tasks.FACTS :]
        half = tasks.FACTS // 2
        return {
            "new facts": new,
            "half of the facts new": (*known[:half], *new[:half]),
            "facts contradicted": tasks.contradicted(),
        }[self.kind]

    def tests(self, size: int) -> dict[str, list[Example]]:
        """Return the problems by what they show, the same for every seed: `taught` is always there.

        Args:
            size: how many of a kind, at most.
        """
        rng, half = Random(99), (size + 1) // 2
        others = {
            "reverse": [tasks.reverse(rng) for _ in range(half)],
            "sort": [tasks.sort(rng) for _ in range(half)],
        }
        if self.kind == "sums":
            own = {
                "taught": [tasks.add(rng, self.style) for _ in range(size)],
                "longer": [tasks.add(rng, self.style, digits=4) for _ in range(half)],
            }
            return {**own, **others, "facts": list(tasks.world()[: min(half, tasks.FACTS)])}
        taught = {"taught": list(self.facts()[:: max(1, tasks.FACTS // size)])}
        if self.kind == "half of the facts new":
            known = {fact.prompt for fact in tasks.world()[: tasks.FACTS]}
            taught["new"] = [fact for fact in taught["taught"] if fact.prompt not in known]
        return {**taught, **others, "sums": [tasks.add(rng, 0) for _ in range(half)]}
