"""Train and evaluate on ranks that share a model's layers; what torchrun starts.

torchrun --nproc-per-node 2 ranks_tensor_parallel.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from dft_plugin import activate
from support import training
from support.on_gpus import on_gpus

ROWS = training.rows(3, seed=1)


def make(out: str, loss: str | None) -> Any:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    model = AutoModelForCausalLM.from_pretrained(Path(out) / "model", tp_plan="auto", device_mesh=mesh)
    changes = {"per_device_eval_batch_size": 2, "per_device_train_batch_size": 2, "max_steps": 2, "learning_rate": 0.0}
    trainer = training.trainer(Path(out), model, **changes)
    trainer.eval_dataset = Dataset.from_list(ROWS)
    if loss is not None:
        activate(trainer, loss)
    return trainer


def main(out: str) -> None:
    torch.set_num_threads(1)
    with on_gpus():
        compare(out)


def compare(out: str) -> None:
    stock, ours = make(out, None), make(out, "nll")
    collated = []

    def collate(features: list[Any]) -> Any:
        batch = training.collate(features)
        collated.append(int((batch["labels"] != -100).sum()))
        return batch

    ours.data_collator = collate
    stock.train()
    ours.train()
    found = {
        "targets": collated[:2],
        "stock": (training.train_logs(stock), stock.evaluate()),
        "ours": (training.train_logs(ours), ours.evaluate()),
    }
    torch.save(found, Path(out) / f"saved{stock.args.process_index}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
