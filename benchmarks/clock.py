"""A callback that notes the seconds of each optimizer step of a trainer."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks import memory


class Clock(TrainerCallback):
    """Notes the seconds of each optimizer step, and the memory when training begins."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: list[float] = []
        self.before = 0

    def on_train_begin(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        """Begin to watch."""
        if self.device == "cpu":
            with torch.no_grad():
                # A file of weights is mapped, and becomes resident where it is first read.
                for parameter in model.parameters():
                    parameter.sum()
        self.before = memory.start(self.device)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.started = self._now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop it."""
        self.seconds.append(self._now() - self.started)

    def _now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        elif torch.get_num_threads() == 1:
            # Of a process that computes on one thread: the same seconds, less those in which others had the core.
            return time.process_time()
        return time.perf_counter()
