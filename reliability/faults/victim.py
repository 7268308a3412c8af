"""A process that trains and comes to harm at a moment that is known beforehand."""

from __future__ import annotations

import os
import resource
import signal
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

TIMEOUT = 20
"""Seconds after which a rank that waits for another gives up."""

SMALL = 4096
"""Bytes that a file may have once the disk is full."""


@dataclass(frozen=True)
class Harm:
    """What happens.

    Attributes:
        what: `SIGKILL`, `SIGTERM`, `SIGINT`, `SIGSTOP`, or `full`: no file may grow beyond a few kilobytes.
        step: the optimizer step in which it happens, counted from 1.
        where: `forward`, `optimizer` (before it steps), `saving` (weights are saved, the state is not), `saved`.
        rank: to which process.
        slow: seconds that each step takes longer, for what waits by the clock.
    """

    what: str
    step: int
    where: str = "forward"
    rank: int = 0
    slow: float = 0.0


@dataclass(frozen=True)
class Order:
    """What a process is to do.

    Attributes:
        host: whose trainer trains.
        kind: `full` or `lora`.
        loss: what stands after `loss:`.
        folder: of models and data.
        out: output folder.
        resume: a checkpoint to go on from.
        harm: what happens to it.
    """

    host: str
    kind: str
    loss: Any
    folder: str
    out: str
    resume: str | None = None
    harm: Harm | None = None


def happen(harm: Harm) -> None:
    """Let it happen to this process."""
    if harm.what == "full":
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, hard))
        return
    os.kill(os.getpid(), getattr(signal, harm.what))


def arm(trainer: Any, harm: Harm) -> None:
    """Have it happen when the trainer is there."""
    from transformers import TrainerCallback

    class Moment(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            time.sleep(harm.slow)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if harm.where == "optimizer" and state.global_step == harm.step - 1:
                happen(harm)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if harm.where == "saved" and state.global_step == harm.step:
                happen(harm)

    def before_forward(*_: Any) -> None:
        if harm.where == "forward" and trainer.model.training and trainer.state.global_step == harm.step - 1:
            happen(harm)

    trainer.add_callback(Moment())
    trainer.model.register_forward_pre_hook(before_forward)
    save = trainer._save_optimizer_and_scheduler

    def save_and_happen(*args: Any) -> None:
        if harm.where == "saving" and trainer.state.global_step == harm.step:
            happen(harm)
        save(*args)

    trainer._save_optimizer_and_scheduler = save_and_happen


def main(order: Order) -> None:
    """Do what is ordered; leave logs and weights of a training that came to its end."""
    import torch
    from support import training

    from reliability.faults import hosts

    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    if "WORLD_SIZE" in os.environ:
        # With `use_cpu` transformers drops `ddp_timeout`, and gloo would wait for half an hour.
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))

    def prepare(trainer: Any) -> None:
        if order.harm is not None and order.harm.rank == rank:
            arm(trainer, order.harm)

    out = Path(order.out)
    trainer = hosts.train(order.host, order.kind, order.loss, Path(order.folder), out, order.resume, prepare)
    if rank == 0:
        weights = training.trained(trainer.accelerator.unwrap_model(trainer.model))
        torch.save({"logs": training.train_logs(trainer), "weights": weights}, out / "end.pt")
