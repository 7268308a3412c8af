"""W&B, MLflow, TensorBoard and their like: the loss among the settings of a run that they show."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dft_plugin.config.handover import swapped
from dft_plugin.saying import warn

logger = logging.getLogger(__name__)


@contextmanager
def telling(args: Any, more: Mapping[str, Any]) -> Iterator[None]:
    """Have the arguments of a trainer say more in this block, in which its trackers read them by `to_dict`.

    All of transformers' own do so when they begin. Outside of the block the arguments are as they were: they are
    pickled with each checkpoint.
    """
    with swapped(args, "to_dict", functools.partial(_with, args.to_dict, more)):
        yield


def _with(to_dict: Callable[[], dict[str, Any]], more: Mapping[str, Any]) -> dict[str, Any]:
    return {**to_dict(), **more}


def update(callbacks: list[Any], found: Mapping[str, str], step: int) -> None:
    """Tell trackers what is known since training began. One that fails is named, and the run goes on.

    Args:
        callbacks: of the trainer.
        found: by key.
        step: of the run.
    """
    for callback in callbacks:
        for kind in type(callback).__mro__:
            tell = _TELL.get(kind.__name__)
            if tell is None:
                continue
            try:
                tell(callback, found, step)
            except Exception as error:
                warn(logger, "dft: %s did not take how the loss is computed: %s", kind.__name__, error)
            break


def _wandb(callback: Any, found: Mapping[str, str], step: int) -> None:
    del step
    run = callback._wandb.run
    if run is not None:
        run.config.update(dict(found), allow_val_change=True)


def _mlflow(callback: Any, found: Mapping[str, str], step: int) -> None:
    del step
    # What may change is a tag; a parameter is set once.
    if callback._ml_flow.active_run() is not None:
        callback._ml_flow.set_tags(dict(found))


def _tensorboard(callback: Any, found: Mapping[str, str], step: int) -> None:
    if callback.tb_writer is not None:
        callback.tb_writer.add_text("dft_loss", json.dumps(dict(found), indent=2), step)


_TELL: dict[str, Callable[[Any, Mapping[str, str], int], None]] = {
    "WandbCallback": _wandb,
    "MLflowCallback": _mlflow,
    "TensorBoardCallback": _tensorboard,
}
"""By the names of transformers' callbacks, which are imported only where they are used."""
