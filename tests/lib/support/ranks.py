"""Train one of several ranks; what torchrun starts.

torchrun --nproc-per-node 2 ranks.py HOST KIND OUT BATCH_SIZE [LOSS]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from dft_plugin import activate
from support import tiny, training
from support.weighers import Divided, OfSequence

MODELS = {
    "full": tiny.llama,
    "tied": lambda: tiny.llama(tie_word_embeddings=True),
    "lora": training.lora,
    "moe": tiny.mixtral,
}


LOSSES: dict[str, Any] = {
    "dft": "dft",
    "divided": Divided(),
    "of_sequence": OfSequence(),
    "iw_sft": "iw_sft",
    "ramp": {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 2}},
}


def main(host: str, kind: str, out: str, batch_size: str, loss: str = "dft") -> None:
    torch.set_num_threads(1)
    make = {"transformers": training.trainer, "trl": training.sft_trainer}[host]
    trainer = make(
        Path(out),
        MODELS[kind](),
        per_device_train_batch_size=int(batch_size),
        per_device_eval_batch_size=int(batch_size),
        # A user's leftover that would make the loss a mean of the ranks' means.
        average_tokens_across_devices=False,
        ddp_find_unused_parameters=False,
    )
    activate(trainer, LOSSES[loss])
    trainer.train()
    evaluated = trainer.evaluate()
    if trainer.is_world_process_zero():
        saved = {
            "world": trainer.args.world_size,
            "weights": training.trained(trainer.accelerator.unwrap_model(trainer.model)),
            "logs": training.train_logs(trainer),
            "evaluated": evaluated,
        }
        torch.save(saved, Path(out) / "saved.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
