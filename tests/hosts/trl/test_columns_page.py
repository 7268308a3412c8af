"""The rows that docs/settings.md shows are read, each token with the number that the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset
from support import columns, tiny, training
from trl import SFTConfig, SFTTrainer

from dft_plugin import activate
from dft_trl.columns import carrying

pytestmark = pytest.mark.host

PAGE = Path(__file__).parents[3] / "docs" / "generate.py"
(SHOWN,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
ROWS = [json.loads(line) for line in SHOWN.splitlines()]
LOSS = {"name": "nll", "weights": {"column": "ratio"}}

LEARNED = [{2.0}, {1.0, 2.0}, {1.0, 2.0}, {2.0}]
"""Which numbers the targets of each have, where all is a target that is not masked by labels of its own."""


def test_there_is_a_row_for_each_form():
    assert len(ROWS) == len(LEARNED) == 4
    assert all("ratio" in json.dumps(row) for row in ROWS)


@pytest.mark.parametrize("at", range(4))
def test_a_row_of_the_page_is_read(at, tmp_path):
    with carrying(LOSS):
        trainer = SFTTrainer(
            model=tiny.llama(),
            args=SFTConfig(**training.arguments(tmp_path, max_steps=1, bf16=False, gradient_checkpointing=False)),
            train_dataset=Dataset.from_list([ROWS[at]] * 4),
            processing_class=columns.tokenizer(),
        )
    activate(trainer, LOSS)
    row = trainer.train_dataset[0]
    numbers = [
        number for number, label in zip(row["dft_column_ratio"][1:], row["labels"][1:], strict=True) if label != -100
    ]
    assert set(numbers) == LEARNED[at]
    trainer.train()
    (logged,) = training.train_logs(trainer)
    assert logged["dft/data_weight"] == pytest.approx(sum(numbers) / len(numbers))
