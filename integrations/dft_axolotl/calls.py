"""What the plugin does where a config has `loss:`; see `plugin.py` for when Axolotl asks for what."""

from __future__ import annotations

from typing import Any

from axolotl.core.trainers.base import AxolotlTrainer

# Before axolotl.datasets, which in 0.21 cannot be the first of the two: each imports the other.
from axolotl.utils.data import sft  # noqa: F401
from axolotl.utils.logging import get_logger
from transformers import Trainer, TrainerCallback

from dft_axolotl import columns, parallel, workers
from dft_axolotl.conflicts import cautions
from dft_axolotl.host import problems_of
from dft_axolotl.reading import checked
from dft_plugin import activate
from dft_plugin.config.refusals import without_traceback
from dft_plugin.errors import ConflictError

# Axolotl shows the INFO lines of its own loggers only.
logger = get_logger("axolotl.dft")


def register(cfg: Any) -> None:
    """Let the columns that the loss reads through what Axolotl prepares.

    Raises:
        SettingsError: nothing stands after `loss:`, or the config's file is none that our reader takes.
    """
    without_traceback("axolotl")
    loss = checked(cfg)
    if loss is not None:
        cfg["loss"] = loss
        columns.install()
        if cfg.get("use_ray"):
            workers.require_loss_on_workers()


def pre_model_load(cfg: Any) -> None:
    """Refuse what is in the way of the loss.

    Raises:
        ConflictError: lists all of it.
    """
    problems = problems_of(cfg.to_dict())
    if problems:
        raise ConflictError(problems)
    for caution in cautions(cfg):
        logger.warning(caution)
    parallel.leave_batches_whole(cfg)


def add_callbacks_post_trainer(cfg: Any, trainer: Trainer) -> list[TrainerCallback]:
    """Put the loss on the trainer as soon as there is one."""
    _put_on(cfg, trainer)
    return [parallel.MustBeSplit(trainer)] if parallel.splits_sequences(cfg) else []


def post_trainer_create(cfg: Any, trainer: Trainer) -> None:
    """Once more: it changes nothing, unless somebody has replaced the trainer's model meanwhile."""
    _put_on(cfg, trainer)


def _put_on(cfg: Any, trainer: Trainer) -> None:
    if not isinstance(trainer, AxolotlTrainer):
        raise ConflictError(
            [
                f"{type(trainer).__name__} is not Axolotl's trainer for supervised fine-tuning, and has a loss of "
                "its own. Remove `rl:` or `trainer_cls:`, or remove `loss:`."
            ]
        )
    activate(trainer, columns.loss_of(cfg))
