"""The trainer that `axolotl train` would begin with, for `dft reference`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import axolotl.cli.config
import yaml
from axolotl.cli.train import do_cli
from axolotl.core.trainers.base import AxolotlTrainer

from dft_axolotl import columns as pipeline
from dft_axolotl.conflicts import PLUGIN
from dft_plugin.config.handover import swapped
from dft_plugin.config.hosts import Launch
from dft_plugin.hf.columns import Column
from dft_plugin.hf.run import first_trainer

_OF_THE_RUN = ("deepspeed", "fsdp", "fsdp_config", "hub_model_id")
"""Keys that mean a training on several devices, or an upload."""


def show(launch: Launch, columns: Sequence[str], take: Callable[[Any], None]) -> None:
    """Make a trainer as Axolotl's command does, and hand it over. Axolotl packs while it trains, so rows are whole."""
    options = {key: yaml.safe_load(text) for key, text in launch.overrides if key != "launcher"}
    with _without_loss(), _carrying(columns), swapped(sys, "argv", sys.argv[:1]):
        trainer = first_trainer(AxolotlTrainer, lambda: do_cli(launch.config_path, **options))
    take(trainer)


@contextmanager
def _without_loss() -> Iterator[None]:
    """Let Axolotl read the config as if there were no `loss:`."""
    plain = axolotl.cli.config.prepare_plugins

    def prepare_plugins(cfg: Any) -> None:
        cfg.pop("loss", None)
        if cfg.get("plugins"):
            cfg["plugins"] = [name for name in cfg["plugins"] if name != PLUGIN]
        for key in _OF_THE_RUN:
            cfg.pop(key, None)
        plain(cfg)

    with swapped(axolotl.cli.config, "prepare_plugins", prepare_plugins):
        yield


@contextmanager
def _carrying(columns: Sequence[str]) -> Iterator[None]:
    """Let columns through the pipeline, which asks the config for its loss otherwise."""
    pipeline.install()
    carried = tuple(map(Column, columns))
    with swapped(pipeline, "_columns", lambda cfg: carried):
        yield
