"""Axolotl's training module: with the loss active, as a launcher starts it on each rank, or up to its trainer.

accelerate launch -m dft_axolotl.run --dft-settings '{"name": "dft"}' config.yml [--key=value ...]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import axolotl.cli.config
import fire
from axolotl.cli.train import do_cli

from dft_axolotl.autoload import with_plugin
from dft_axolotl.conflicts import PLUGIN
from dft_plugin.config import handover
from dft_plugin.config.files import parse_yaml
from dft_plugin.config.hosts import Launch
from dft_plugin.config.sending import as_refused

_OF_THE_RUN = ("deepspeed", "fsdp", "fsdp_config", "hub_model_id")
"""Keys that mean a training on several devices, or an upload."""


def train(loss: Any, config: str, **options: Any) -> None:
    """Train a config with a loss, in this process."""
    module = axolotl.cli.config
    prepare = handover.swapped(module, "prepare_plugins", with_plugin(module, loss))
    with handover.read_by_us(module), prepare, as_refused():
        do_cli(config, **options)


def main(argv: Sequence[str]) -> None:
    """Take our argument, and leave the others to Axolotl, which reads `sys.argv` too.

    Raises:
        SettingsError: there is no loss to train with.
    """
    loss, sys.argv[1:] = handover.demand(argv)

    def do(config: str, **options: Any) -> None:
        train(loss, config, **options)

    fire.Fire(do)


def show(launch: Launch, columns: Sequence[str]) -> Any:
    """Return a trainer that is made as Axolotl's command does. Axolotl packs while it trains, so rows are whole."""
    from axolotl.core.trainers.base import AxolotlTrainer

    from dft_axolotl.columns import keeping
    from dft_plugin.hf.run import first_trainer

    options = {key: parse_yaml(text, key) for key, text in launch.overrides if key != "launcher"}
    reading = handover.read_by_us(axolotl.cli.config)
    with reading, _without_loss(), handover.swapped(sys, "argv", sys.argv[:1]):
        return first_trainer(AxolotlTrainer, lambda: do_cli(launch.config_path, **options), columns, keeping)


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

    with handover.swapped(axolotl.cli.config, "prepare_plugins", prepare_plugins):
        yield


if __name__ == "__main__":
    main(sys.argv[1:])
