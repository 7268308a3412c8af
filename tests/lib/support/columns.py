"""Data with a column of numbers, an objective that is nothing but that, and its loss by hand in float64."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import torch

from dft_plugin.objectives import Objective
from support import oracle, tiny, training
from support.made import register as register_all


class Ratio(Objective):
    """w = the column `ratio`."""

    name: ClassVar[str] = "ratio"
    summary: ClassVar[str] = "w = ratio"
    source: ClassVar[str] = "none"
    columns: ClassVar[frozenset[str]] = frozenset({"ratio"})

    def weigh(self, rows, targets, clock):
        return targets.columns["ratio"]


class Two(Ratio):
    """w = ratio + 100 * other: each column in its place, or the sum is another."""

    name: ClassVar[str] = "two"
    columns: ClassVar[frozenset[str]] = frozenset({"ratio", "other"})

    def weigh(self, rows, targets, clock):
        return targets.columns["ratio"] + 100 * targets.columns["other"]


TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}w11 {% generation %}{{ m.content }} </s>{% endgeneration %} "
    "{% else %}w10 {{ m.content }} </s> {% endif %}{% endfor %}{% if add_generation_prompt %}w11 {% endif %}"
)
"""A chat template that only appends."""


def tokenizer(template: str = TEMPLATE) -> Any:
    made = training.tokenizer()
    made.chat_template = template
    return made


def token_rows(count: int = 24) -> list[dict[str, Any]]:
    """Tokenised rows, each with `ratio` per token, all different."""
    rows = training.rows(count)
    for number, row in enumerate(rows):
        row["ratio"] = [0.25 + number + at / 64 for at in range(len(row["input_ids"]))]
    return rows


def scored_rows(count: int = 24) -> list[dict[str, Any]]:
    """Tokenised rows, each with `old_logp` per token: what the model gives them, roughly."""
    pick = random.Random(4)
    return [{**row, "old_logp": [-pick.uniform(4, 6) for _ in row["labels"]]} for row in training.rows(count)]


def scored_chats(count: int = 24) -> list[dict[str, Any]]:
    """Chats with `old_logp` for each message."""
    return [
        {"messages": row["messages"], "old_logp": [-4 - number / 2 for number in row["ratio"]]}
        for row in chats(count)[0]
    ]


def words(pick: random.Random, least: int = 1, most: int = 8) -> list[int]:
    return [pick.randint(12, tiny.VOCAB - 1) for _ in range(pick.randint(least, most))]


def text(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def chats(count: int = 16, turns: int = 2, seed: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Chats with a number for each message, and what they are as tokens, by hand (the assistant's are targets)."""
    pick, given, made = random.Random(seed), [], []
    for _ in range(count):
        messages, ratio, ids, labels, column = [], [], [], [], []
        for _ in range(turns):
            for role, head in (("user", 10), ("assistant", 11)):
                content, number = words(pick), pick.randint(1, 64) / 16
                messages.append({"role": role, "content": text(content)})
                ratio.append(number)
                ids += [head, *content, 2]
                labels += [-100, *(content if role == "assistant" else [-100] * len(content))]
                labels.append(2 if role == "assistant" else -100)
                column += [number] * (len(content) + 2)
        given.append({"messages": messages, "ratio": ratio})
        made.append({"input_ids": ids, "labels": labels, "ratio": column})
    return given, made


def loss(model: Any, rows: list[dict[str, Any]], weight: oracle.Weight = oracle.nll) -> float:
    """Sum of -ratio w log p over all targets, by their number; each row by itself, without padding."""
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
            logits = model(input_ids=ids).logits[0, :-1]
            kept = labels[1:] != -100
            ratio = torch.tensor(row["ratio"], dtype=torch.float64)[1:][kept]
            total += float((ratio * oracle.token_losses(logits, labels[1:], weight)).sum())
            count += int(kept.sum())
    return total / count


def register(monkeypatch: Any) -> None:
    """Let `loss: ratio` and `loss: two` be named in a config."""
    register_all(monkeypatch, Ratio, Two)
