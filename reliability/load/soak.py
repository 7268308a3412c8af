"""Thousands of steps of a trainer: memory, files, objects, and what a log costs."""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from dft_plugin import activate
from reliability.load import tiny, watch

Row = dict[str, Any]

WARM = 0.2
"""Share of a run after which nothing is to grow: allocators, caches and the first log are behind it then."""


class Watcher(TrainerCallback):  # type: ignore[misc]
    """Looks at the process every so many steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.seen: list[Row] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note what the process holds."""
        if state.global_step % self.every == 0:
            row = {
                "step": state.global_step,
                "resident_mib": round(watch.resident_mib(), 2),
                "files": watch.open_files(),
                "objects": watch.objects(),
            }
            if tracemalloc.is_tracing():
                row["ours_kib"] = round(watch.ours_kib(), 2)
            if torch.cuda.is_available():
                row["device_mib"] = round(torch.cuda.memory_allocated() / watch.MIB, 3)
            self.seen.append(row)


class Stopwatch:
    """Times a method of a trainer, apart for steps that log and those that do not."""

    def __init__(self, trainer: Any, name: str) -> None:
        self.logging: list[float] = []
        self.others: list[float] = []
        original = getattr(trainer, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            times = self.logging if trainer.control.should_log else self.others
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                times.append(time.perf_counter() - began)

        setattr(trainer, name, timed)


def soak(loss: Any, steps: int, *, every: int, logging_steps: int = 10, traced: bool = False) -> Row:
    """Train, and return what was seen.

    Args:
        loss: as `activate` takes it; None: the trainer's own.
        steps: of the optimizer.
        every: how often the process is looked at.
        logging_steps: of the trainer.
        traced: whether Python's allocations are followed, which takes time.
    """
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=1e-4,
            logging_steps=logging_steps,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            seed=1,
        )
        watcher = Watcher(every)
        data: Any = tiny.rows()
        trainer = Trainer(tiny.model(), arguments, tiny.collate, data, callbacks=[watcher])
        quiet(trainer)
        attachment = None if loss is None else activate(trainer, loss)
        clock = Stopwatch(trainer, "_maybe_log_save_evaluate")
        if traced:
            tracemalloc.start()
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        lines = watch.held_by_lines() if traced else []
        tracemalloc.stop()
        if attachment is not None:
            attachment.detach()
    warm = [one for one in watcher.seen if one["step"] >= WARM * steps]
    return {
        "loss": loss or "stock",
        "steps": steps,
        "logging_steps": logging_steps,
        "traced": traced,
        "seconds": round(seconds, 1),
        "log_ms": round(1000 * _median(clock.logging), 3),
        "no_log_ms": round(1000 * _median(clock.others), 3),
        "growth": {key: _growth(warm, key) for key in watcher.seen[0] if key != "step"},
        "lines": lines,
        "seen": watcher.seen,
    }


def quiet(trainer: Any) -> None:
    """Take away what prints each log."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2] if times else 0.0


def _growth(seen: list[Row], key: str) -> float:
    """Return by how much the last third lies above the first, each by its median: what a thousand steps add up to."""
    third = max(1, len(seen) // 3)
    first, last = ([one[key] for one in part] for part in (seen[:third], seen[-third:]))
    return round(_median(last) - _median(first), 2)
