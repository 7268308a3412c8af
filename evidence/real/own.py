"""Demonstrations that are the model's own replies: right ones, and wrong ones where wrong ones are wanted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random

from demo.sums import final_number
from evidence.real import replies
from evidence.real.questions import Question

TRIES = 4
"""Replies to each question."""


def pools(asked: Iterable[Question], replied: Iterable[str]) -> tuple[list[Question], list[Question]]:
    """Return the questions with a right reply as their demonstration, the first one, and those with a wrong one.

    Args:
        asked: questions, as often as they were replied to.
        replied: to each.
    """
    right: dict[str, Question] = {}
    wrong: dict[str, Question] = {}
    for one, reply in zip(asked, replied, strict=True):
        pool = right if final_number(reply) == one.truth else wrong
        pool.setdefault(one.text, Question(one.text, reply.strip(), one.truth))
    return list(right.values()), list(wrong.values())


def demonstrations(
    model: Path, asked: Sequence[Question], share: float, count: int, tokens: int, seed: int
) -> list[Question]:
    """Return rows to train on, the same question more than once where right replies are few.

    Args:
        model: its folder; what it replied is kept beside it.
        asked: questions.
        share: of wrong replies.
        count: of rows.
        tokens: of a reply, at most.
        seed: decides which rows are taken.

    Raises:
        RuntimeError: the model gave no right reply at all.
    """
    path = model.with_name(f"{model.name}-own-{len(asked)}.json")
    if not path.exists():
        loaded, tokenizer = replies.load(model, None)
        again = list(asked) * TRIES
        said = replies.reply(loaded, tokenizer, again, 1.0, tokens, seed=0)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(said), encoding="utf-8")
        partial.rename(path)
    right, wrong = pools(list(asked) * TRIES, json.loads(path.read_text(encoding="utf-8")))
    if not right or (share and not wrong):
        raise RuntimeError(f"of {len(asked)} questions the model answered {len(right)} right; nothing to demonstrate")
    rng = Random(f"own {seed}")
    return [rng.choice(wrong if rng.random() < share else right) for _ in range(count)]
