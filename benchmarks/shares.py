"""What a step of a host's own training is made of: the share that a better loss can win, and the one it cannot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.clock import Clock

HEAD, LOGITS, BODY, ATTENTION, REST = (
    "GEMMs of the head",
    "passes over logits",
    "GEMMs of the layers",
    "attention",
    "the rest",
)
_GEMMS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}


def share_of(name: str, shapes: Iterable[Any], vocab: int) -> str:
    """Return which part of a step an operator belongs to, by its name and the shapes of its inputs.

    Whatever reads or writes logits has the size of the vocabulary among its dimensions.
    """
    of_logits = any(vocab in shape for shape in shapes if isinstance(shape, Sequence))
    if name in _GEMMS:
        return HEAD if of_logits else BODY
    if of_logits:
        return LOGITS
    return ATTENTION if "attention" in name else REST


class Shares(Clock):
    """A callback that profiles the second step, and keeps the seconds of each part of it."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.parts: dict[str, float] = {}
        self.of_step: profile | None = None

    def on_train_begin(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        """Note how many words the head has."""
        super().on_train_begin(model=model)
        self.vocab = int(model.get_output_embeddings().weight.shape[0])

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Begin to profile the second step: the first allocates and compiles."""
        super().on_step_begin()
        if len(self.seconds) == 1:
            self.of_step = profile(activities=[ProfilerActivity.CPU], record_shapes=True).__enter__()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Sum what was profiled."""
        super().on_step_end()
        if self.of_step is None:
            return
        self.of_step.__exit__(None, None, None)
        for event in self.of_step.key_averages(group_by_input_shape=True):
            part = share_of(event.key, event.input_shapes or (), self.vocab)
            self.parts[part] = self.parts.get(part, 0.0) + event.self_cpu_time_total / 1e6
        self.of_step = None
