"""Questions with answers that can be checked, and demonstrations of them, some of them wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal

from demo.sums import slip, worked_out

Kind = Literal["answer alone", "worked out", "own replies", "facts"]

TRAINED, HELD_OUT = 1_000_000, 2_000_000
"""Seeds of reasoning-gym, far apart: item i depends on seed + i alone."""

FACTS = 60


@dataclass(frozen=True)
class Question:
    """One row.

    Attributes:
        text: what is asked.
        demonstration: what is learned.
        truth: the last number of a right reply.
    """

    text: str
    demonstration: str
    truth: str


@dataclass(frozen=True)
class Shown:
    """What a real model is shown.

    Attributes:
        kind: sums with the answer alone; sums worked out line by line; the model's own replies to the latter (`own.py`
            puts them in the place of these); facts about nobody.
        wrong: share of wrong answers, steps, replies or values.
    """

    kind: Kind
    wrong: float

    def demonstrations(self, count: int, seed: int) -> list[Question]:
        """Return `count` rows to train on; the seed decides which of them are wrong."""
        rng = Random(f"demonstrations {seed}")
        if self.kind == "facts":
            every = facts()
            return [self._fact(every[place % len(every)], rng) for place in range(count)]
        return [self._sum(item, rng) for item in self._items(count, TRAINED)]

    def held_out(self, count: int, trained: Sequence[Question]) -> list[Question]:
        """Return questions to ask: sums that are not among those trained on, or the facts that were taught."""
        if self.kind == "facts":
            return facts()[:count]
        seen, right, rng = {one.text for one in trained}, Shown(self.kind, 0.0), Random(0)
        items = (item for item in self._items(3 * count, HELD_OUT) if item["question"] not in seen)
        return [right._sum(item, rng) for item in islice(items, count)]

    def _items(self, count: int, seed: int) -> Sequence[dict[str, Any]]:
        import reasoning_gym

        terms = 2 if self.kind == "answer alone" else 3
        options = {"min_terms": terms, "max_terms": terms, "min_digits": 1, "max_digits": 2}
        return list(reasoning_gym.create_dataset("chain_sum", size=count, seed=seed, **options))

    def _sum(self, item: dict[str, Any], rng: Random) -> Question:
        off = slip(self.wrong, rng)
        if self.kind == "answer alone":
            return Question(item["question"], str(int(item["answer"]) + off), item["answer"])
        return Question(item["question"], worked_out(item["metadata"]["expression"], off, rng), item["answer"])

    def _fact(self, fact: Question, rng: Random) -> Question:
        if rng.random() >= self.wrong:
            return fact
        return Question(
            fact.text, fact.demonstration.replace(fact.truth, str(rng.randrange(1000, 10_000))), fact.truth
        )


def facts() -> list[Question]:
    """Return facts that no model knows."""
    rng, names = Random(5), {}
    while len(names) < FACTS:
        name = "".join(rng.choice("bdfglmnprstv") + rng.choice("aeiou") for _ in range(3)).capitalize()
        names.setdefault(name, str(rng.randrange(1000, 10_000)))
    return [
        Question(f"What is the number of {name}?", f"The number of {name} is {number}.", number)
        for name, number in names.items()
    ]


def write(folder: Path, rows: Sequence[Question]) -> None:
    """Write the rows, of which replies are trained: prompts and completions as `data`, messages as `chat`."""
    turns = [
        ([{"role": "user", "content": one.text}], [{"role": "assistant", "content": one.demonstration}])
        for one in rows
    ]
    _write(folder / "data", [{"prompt": asked, "completion": replied} for asked, replied in turns])
    _write(folder / "chat", [{"messages": asked + replied} for asked, replied in turns])
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    columns = {"messages": "messages"}
    info = {"chat": {"file_name": "train.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags}}
    (folder / "chat" / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


def _write(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
