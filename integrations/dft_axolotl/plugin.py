"""DFTPlugin: where Axolotl calls us."""

from __future__ import annotations

from typing import Any

from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.integrations.base import BasePlugin
from axolotl.utils.logging import get_logger
from transformers import Trainer, TrainerCallback

from dft_axolotl import columns
from dft_axolotl.conflicts import cautions
from dft_axolotl.host import problems_of
from dft_plugin import activate
from dft_plugin.errors import ConflictError
from dft_plugin.hf.callbacks import MustBeActive, is_active

# Axolotl shows the INFO lines of its own loggers only.
logger = get_logger("axolotl.dft")

_WHY = (
    "Axolotl did not call the plugin after it made the trainer. Start with `axolotl train` or `dft train`; in a "
    "script of your own call axolotl.train.setup_model_and_trainer."
)


class DFTPlugin(BasePlugin):  # type: ignore[misc]
    """Trains with the loss that stands after `loss:`."""

    def register(self, cfg: Any) -> None:
        """Let the columns that the loss reads through what Axolotl prepares. Comes before the config is checked."""
        if cfg.get("loss") is not None:
            columns.install()

    def get_input_args(self) -> str:
        """Name the class that Axolotl merges into its schema."""
        return "dft_axolotl.args.DFTArgs"

    def pre_model_load(self, cfg: Any) -> None:
        """Check again: by now Axolotl has filled in what it found out about the model."""
        if cfg.loss is None:
            return
        problems = problems_of(cfg.to_dict())
        if problems:
            raise ConflictError(problems)
        for caution in cautions(cfg):
            logger.warning(caution)

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Trainer) -> list[TrainerCallback]:
        """Have the run stopped at its start should Axolotl not have called `post_trainer_create`."""
        return [] if cfg.loss is None else [MustBeActive(lambda: is_active(trainer), _WHY)]

    def post_trainer_create(self, cfg: Any, trainer: Trainer) -> None:
        """Put the loss on the trainer. Axolotl comes here for every config, with or without `loss:`."""
        if cfg.loss is None:
            return
        if not isinstance(trainer, AxolotlTrainer):
            raise ConflictError(
                [
                    f"{type(trainer).__name__} is not Axolotl's trainer for supervised fine-tuning, and has a loss of "
                    "its own. Remove `rl:` or `trainer_cls:`, or remove `loss:`."
                ]
            )
        activate(trainer, columns.loss_of(cfg))
