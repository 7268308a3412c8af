"""DFTPlugin: where Axolotl calls us. Light: from 0.21 Axolotl loads it in every run, also where no `loss:` stands."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from typing import Any

from axolotl.integrations.base import BasePlugin

from dft_axolotl import broken

_OPTION = re.compile(r"--loss(?![\w-])|--loss__", re.IGNORECASE)
"""On a command line of Axolotl's, which may drop it."""


class DFTPlugin(BasePlugin):  # type: ignore[misc]
    """Trains with the loss that stands after `loss:`, and does nothing where there is none."""

    def register(self, cfg: Any) -> None:
        """Load what the loss needs, and prepare. Comes before the config is checked; its errors are not swallowed."""
        # A key without a value, or one that only looks like ours, is for the reader to refuse.
        named = any("loss" in str(key) for key in cfg) or any(_OPTION.match(word) for word in sys.argv[1:])
        if named or "dft_axolotl" in str(cfg.get("plugins")):
            _calls().register(cfg)

    def get_input_args(self) -> str:
        """Name the class that Axolotl merges into its schema."""
        return "dft_axolotl.args.DFTArgs"

    def pre_model_load(self, cfg: Any) -> None:
        """Check again: by now Axolotl has filled in what it found out about the model."""
        if cfg.loss is not None:
            _calls().pre_model_load(cfg)

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """Put the loss on the trainer: `axolotl evaluate` calls nothing after this."""
        return [] if cfg.loss is None else _calls().add_callbacks_post_trainer(cfg, trainer)

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Put the loss on the trainer, should that not have been done yet."""
        if cfg.loss is not None:
            _calls().post_trainer_create(cfg, trainer)


def _calls() -> Any:
    try:
        return import_module("dft_axolotl.calls")
    except ImportError as error:
        raise broken(error) from error
