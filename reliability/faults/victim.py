"""A process that trains and comes to harm at a moment that is known beforehand."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

TIMEOUT = 20
"""Seconds after which a rank that waits for another gives up."""


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
        folder: of models and data, made where they are missing; the working directory of the hosts that want one.
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


def main(order: Order) -> None:
    """Do what is ordered; leave logs and weights of a training that came to its end."""
    import torch

    from reliability.faults import hosts

    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    if "WORLD_SIZE" in os.environ:
        # With `use_cpu` transformers drops `ddp_timeout`, and gloo would wait for half an hour.
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))

    harm = order.harm if order.harm is not None and order.harm.rank == rank else None
    ended = hosts.train(order, harm)
    if rank == 0:
        torch.save(ended, Path(order.out) / "end.pt")
