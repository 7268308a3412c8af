"""Train one of two ranks, of which one has a row that is not finite; what torchrun starts.

torchrun --nproc-per-node 2 ranks_nonfinite.py OUT
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from dft_plugin import activate
from dft_plugin.errors import NonFiniteError
from support import spoiled_runs, training

BAD = 7
"""The last row of the second step: the second rank has it, in the second of its two micro-batches."""


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def run(out: Path, how: str) -> dict[str, Any]:
    """Train, and return what this rank has seen of it."""
    heard = Heard()
    logger = logging.getLogger("dft_plugin")
    logger.addHandler(heard)
    trainer, history = spoiled_runs.trainer(
        training.trainer,
        out / how,
        BAD,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        learning_rate=0.1,
        ddp_find_unused_parameters=False,
    )
    activate(trainer, {"name": "dft", "nonfinite": how})
    error = None
    try:
        trainer.train()
    except NonFiniteError as stopped:
        error = str(stopped)
    logger.removeHandler(heard)
    model = trainer.accelerator.unwrap_model(trainer.model)
    logs = training.train_logs(trainer)
    return {
        "error": error,
        "said": [text for text in heard.said if "finite" in text],
        "weights": [*history.weights, training.trained(model)],
        "step": trainer.state.global_step,
        "logs": logs,
    }


def main(out: str) -> None:
    torch.set_num_threads(1)
    found = {how: run(Path(out), how) for how in ("warn", "error", "skip")}
    torch.save(found, Path(out) / f"saved{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
