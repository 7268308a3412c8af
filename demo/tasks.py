"""The two tasks: sums, which are trained, and counting letters, which is not.

Demonstrations are solutions worked out line by line, as the model itself tends to write them: DFT
trusts what the model already finds likely, and here it starts with a mean target probability above
one half. Some have a slip, which the model finds unlikely. Both tasks come from reasoning-gym,
which makes the questions and checks the answers.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import reasoning_gym
from reasoning_gym.dataset import ProceduralDataset

from demo.sums import final_number, slip, worked_out

Item = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A family of questions of reasoning-gym whose answer is a number."""

    title: str
    family: str
    options: dict[str, int] = field(default_factory=dict)

    def items(self, size: int, seed: int) -> ProceduralDataset:
        """Make `size` questions; item i depends on seed + i alone, so keep seeds well apart."""
        return reasoning_gym.create_dataset(self.family, size=size, seed=seed, **self.options)


SUMS = Task("sums", "chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2})
LETTERS = Task("letters", "letter_counting", {"min_words": 1, "max_words": 2})

TRAIN_SEED, HELD_OUT_SEED = 1_000_000, 2_000_000


def held_out(task: Task, size: int, trained_on: set[str]) -> tuple[ProceduralDataset, list[Item]]:
    """Draw questions that are not among `trained_on`, with the data set that scores them."""
    dataset = task.items(2 * size, HELD_OUT_SEED)
    fresh = [item for item in dataset if item["question"] not in trained_on]
    return dataset, fresh[:size]


def write_demonstrations(folder: Path, size: int, wrong: float) -> set[str]:
    """Write `train.jsonl` in TRL's prompt/completion format, a share of it wrong; only completions are trained."""
    folder.mkdir(parents=True, exist_ok=True)
    items, rng = list(SUMS.items(size, TRAIN_SEED)), Random(0)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for item in items:
            expression = item["metadata"]["expression"]
            if final_number(worked_out(expression, 0, rng)) != item["answer"]:
                raise ValueError(f"{expression} is not worked out to {item['answer']}, as reasoning-gym says")
            reply = worked_out(expression, slip(wrong, rng), rng)
            row = {
                "prompt": [{"role": "user", "content": item["question"]}],
                "completion": [{"role": "assistant", "content": reply}],
            }
            file.write(json.dumps(row) + "\n")
    return {item["question"] for item in items}
