"""python -m minimal.train CONFIG: train a causal LM on a file of tokenised rows.

Like any host it knows nothing of dft-plugin, reads one YAML, refuses keys that it does not know, makes its trainer by
itself, and keeps of its data what it needs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

PADDING = {"input_ids": 0, "attention_mask": 0, "labels": -100}
DEFAULTS = {"steps": 1, "batch_size": 2, "accumulate": 1, "learning_rate": 1.0, "label_smoothing": 0.0}


class TokenTrainer(Trainer):
    """Trains on tokens."""


def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad on the right."""
    width = max(len(row["input_ids"]) for row in rows)
    batch = {key: [row[key] + [value] * (width - len(row[key])) for row in rows] for key, value in PADDING.items()}
    return {key: torch.tensor(values) for key, values in batch.items()}


def read(path: str) -> Dataset:
    """Read rows of tokens: lines of JSON, or a folder of Parquet."""
    if Path(path).is_dir():
        rows = load_dataset(path, split="train")
    else:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        rows = Dataset.from_list([json.loads(line) for line in lines])
    return rows.map(lambda row: {"attention_mask": [1] * len(row["input_ids"])})


def train(config: dict[str, Any]) -> None:
    """Train what a config asks for, and save it."""
    given = {**DEFAULTS, **config}
    arguments = TrainingArguments(
        output_dir=given.pop("output_dir"),
        max_steps=given.pop("steps"),
        per_device_train_batch_size=given.pop("batch_size"),
        gradient_accumulation_steps=given.pop("accumulate"),
        learning_rate=given.pop("learning_rate"),
        label_smoothing_factor=given.pop("label_smoothing"),
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    model = AutoModelForCausalLM.from_pretrained(given.pop("model_dir"))
    rows = read(given.pop("token_file"))
    if given:
        raise SystemExit(f"minimal does not know {', '.join(given)}")
    trainer = TokenTrainer(model=model, args=arguments, data_collator=collate, train_dataset=rows)
    trainer.train()
    trainer.save_model()
    trainer.save_state()


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line."""
    (path,) = sys.argv[1:] if words is None else words
    train(yaml.safe_load(Path(path).read_text(encoding="utf-8")))


if __name__ == "__main__":
    # By its name: as `__main__` it would be a second module.
    from minimal.train import main as run

    run()
