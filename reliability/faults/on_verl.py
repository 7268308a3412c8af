"""One short run of verl's SFT trainer, and what happens to it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from reliability.faults.arming import happen
from reliability.faults.victim import Harm, Order


def train(order: Order, harm: Harm | None) -> dict[str, Any]:
    """Train in this process, and return `logs` of the steps that it made, and `weights`.

    Args:
        order: what.
        harm: comes to this process; None: nothing does.
    """
    from support import verl_runs

    from reliability.faults.hosts import STEPS

    home, out = Path(order.folder), Path(order.out)
    if not (home / "llama").is_dir():
        verl_runs.make_home(home)
    os.chdir(home)
    # One epoch, since verl trains nothing that goes on from a checkpoint at the end of one.
    changes: dict[str, Any] = {
        "+loss": _as_words(order.loss),
        "optim.optimizer": "AdamW",
        "optim.lr": 0.01,
        "optim.lr_scheduler_type": "cosine",
        "data.train_batch_size": 4,
        "data.micro_batch_size_per_gpu": 2,
        "trainer.total_training_steps": STEPS,
        "trainer.save_freq": 1,
        "trainer.default_local_dir": str(out),
        **({"trainer.resume_mode": "resume_path", "trainer.resume_from_path": order.resume} if order.resume else {}),
        **(verl_runs.LORA if order.kind == "lora" else {}),
    }
    run = verl_runs.train(*verl_runs.words(**changes), prepare=lambda trainer: arm(trainer, harm) if harm else None)
    first = STEPS - len(run.training_logs)
    logs = [{"step": step, **entry} for step, entry in enumerate(run.training_logs, first + 1)]
    return {"logs": logs, "weights": run.after}


def _as_words(loss: Any) -> str:
    """Write a loss as hydra reads it: JSON, but for quoted keys."""
    return re.sub(r'"(\w+)":', r"\1:", json.dumps(loss, separators=(",", ":")))


def arm(trainer: Any, harm: Harm) -> None:
    """Have it happen where it shall."""
    engine, handler = trainer.engine, trainer.ckpt_handler
    step = trainer.resume_global_step

    def at(where: str) -> None:
        if (harm.where, harm.step) == (where, step):
            happen(harm)

    train_batch, optimizer_step = engine.train_batch, engine.optimizer_step
    save_weights, save = engine.save_checkpoint, handler.save_checkpoint

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal step
        step += 1
        return train_batch(*given, **named)

    def stepped(*given: Any, **named: Any) -> Any:
        at("optimizer")
        return optimizer_step(*given, **named)

    def weights_saved(*given: Any, **named: Any) -> None:
        save_weights(*given, **named)
        at("saving")

    def saved(*given: Any, **named: Any) -> None:
        save(*given, **named)
        at("saved")

    engine.module.register_forward_pre_hook(lambda *_: at("forward"))
    engine.train_batch, engine.optimizer_step = counted, stepped
    engine.save_checkpoint, handler.save_checkpoint = weights_saved, saved
