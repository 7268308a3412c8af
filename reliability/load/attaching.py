"""Attach and detach, over and over, on one model and on one trainer: nothing stays."""

from __future__ import annotations

import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

from dft_plugin import activate, attach
from reliability.load import tiny, watch
from reliability.load.soak import Row, quiet

LOSSES: tuple[Any, ...] = ("dft", "nll", {"name": "dft", "alpha": 0.5, "always_learn": [2]}, "eaft")


def of_model(times: int, losses: tuple[Any, ...] = LOSSES) -> Row:
    """Attach, train a step, detach, with one loss after the other."""
    model, batch = tiny.model(), tiny.batch()
    stock = float(model(**batch).loss.detach())

    def once(number: int) -> None:
        attachment = attach(model, losses[number % len(losses)])
        model(**batch).loss.backward()
        attachment.drain(training=True)
        attachment.detach()
        model.zero_grad(set_to_none=True)

    row = _repeated(once, times)
    return {
        "what": "attach, a step, detach",
        **row,
        "left": watch.hooks(model),
        "same_loss": float(model(**batch).loss.detach()) == stock,
    }


def of_trainer(times: int, losses: tuple[Any, ...] = ("dft", "nll")) -> Row:
    """Activate and detach on a trainer; nothing is trained."""
    # What keeps what is said would grow with it.
    with tempfile.TemporaryDirectory() as out, Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        data: Any = tiny.rows()
        arguments = TrainingArguments(output_dir=out, report_to="none", use_cpu=True, disable_tqdm=True)
        trainer = Trainer(tiny.model(), arguments, tiny.collate, data)
        quiet(trainer)
        methods = set(vars(trainer))
        callbacks = len(trainer.callback_handler.callbacks)
        row = _repeated(lambda number: activate(trainer, losses[number % len(losses)]).detach(), times)
        left = [*watch.hooks(trainer.model), *sorted(set(vars(trainer)) - methods)]
        if len(trainer.callback_handler.callbacks) != callbacks:
            left.append("callbacks")
    return {"what": "activate, detach", **row, "left": left}


def _repeated(once: Callable[[int], None], times: int) -> Row:
    """Do it, and return what the second half of the times left behind."""
    for number in range(max(4, times // 10)):
        once(number)
    tracemalloc.start()
    for number in range(times // 2):
        once(number)
    before = watch.ours_kib(), watch.objects(), watch.open_files(), watch.resident_mib()
    began = time.perf_counter()
    for number in range(times // 2):
        once(number)
    seconds = time.perf_counter() - began
    after = watch.ours_kib(), watch.objects(), watch.open_files(), watch.resident_mib()
    lines = watch.held_by_lines()
    tracemalloc.stop()
    names = ("ours_kib", "objects", "files", "resident_mib")
    growth = {name: round(b - a, 2) for name, a, b in zip(names, before, after, strict=True)}
    return {"times": times, "ms": round(2000 * seconds / times, 2), "growth": growth, "lines": lines}
