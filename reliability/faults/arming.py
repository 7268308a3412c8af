"""What happens to a trainer of transformers or to one that derives from it, put where it shall happen."""

from __future__ import annotations

import os
import resource
import signal
import time
from typing import Any

from reliability.faults.victim import Harm

SMALL = 4096
"""Bytes that a file may have once the disk is full."""


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
