"""USE_RAY=1: the loss on its way to the workers that LLaMA-Factory starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from dft_plugin.config.handover import swapped
from dft_plugin.config.sending import as_refused, sent

_GUARD = "dft_guard"
"""Marks the callback that stops a worker which nobody of ours has entered."""


_MOMENTS = ("on_train_begin", "on_prediction_step")
"""When it does."""


@contextmanager
def carrying(loss: Any) -> Iterator[TrainerCallback]:
    """Have the workers that LLaMA-Factory starts inside this block train a loss.

    Args:
        loss: what stands after `loss:`.

    Yields:
        A callback for the run: it stops a worker that would train without.

    Raises:
        ConflictError: a worker has no dft-plugin, or another version of it.
        DftError: what a worker has refused.
    """
    from llamafactory.train import tuner

    with swapped(tuner, *_entrance(tuner, loss)), as_refused():
        yield _guard()


@contextmanager
def none() -> Iterator[None]:
    """Have LLaMA-Factory train in this process inside this block."""
    before = os.environ.pop("USE_RAY", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["USE_RAY"] = before


def without_guard(callbacks: list[Any]) -> list[Any]:
    """Return the callbacks of a run that has been taken up."""
    return [one for one in callbacks if not hasattr(one, _GUARD)]


def _entrance(tuner: Any, loss: Any) -> tuple[str, Any]:
    """Return the name of what Ray calls on each worker, and what stands in its place: ours.

    0.9.5 makes actors of a class, and calls a method of it; 0.9.4 gives a function to a trainer of Ray's.
    """
    call = sent("dft_llamafactory.run:train_on_worker", loss=loss)
    if not hasattr(tuner, "Worker"):
        return "_training_function", call
    # Made here, so that Ray sends it as code as well.
    return "Worker", type("Worker", (tuner.Worker,), {"_training_function": lambda self, config: call(config)})


def _guard() -> TrainerCallback:
    def stop(self: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            "dft: a worker of Ray's was about to train without the loss that `loss:` asks for. Nothing was updated. "
            "Leave out `loss:`, or report the configuration."
        )

    made: TrainerCallback = type("Guard", (TrainerCallback,), dict.fromkeys(_MOMENTS, stop) | {_GUARD: True})()
    return made
