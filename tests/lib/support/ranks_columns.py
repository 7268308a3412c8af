"""Train rows with a column on one of several ranks; what torchrun starts.

torchrun --nproc-per-node 2 ranks_columns.py OUT BATCH_SIZE map|stream
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1]))

from dft_plugin import activate
from support import columns, tiny, training


def main(out: str, batch_size: str, kind: str) -> None:
    torch.set_num_threads(1)
    rows = Dataset.from_list(columns.token_rows(8))
    size = {"per_device_train_batch_size": int(batch_size), "ddp_find_unused_parameters": False}
    trainer = Trainer(
        model=tiny.llama(),
        args=TrainingArguments(**training.arguments(Path(out), max_steps=2, learning_rate=0.01, **size)),
        # A stream is read by one rank, which hands batches of one width to the others.
        data_collator=DataCollatorForSeq2Seq(training.tokenizer(), pad_to_multiple_of=32),
        train_dataset=rows.to_iterable_dataset() if kind == "stream" else rows,
    )
    activate(trainer, columns.Ratio())
    trainer.train()
    if trainer.is_world_process_zero():
        weights = training.trained(trainer.accelerator.unwrap_model(trainer.model))
        torch.save({"weights": weights, "losses": training.losses(trainer)}, Path(out) / "saved.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
