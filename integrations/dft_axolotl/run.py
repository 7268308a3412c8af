"""Axolotl's training module with the loss active; what `dft train` lets a launcher start on each rank.

accelerate launch -m dft_axolotl.run --dft-settings '{"name": "dft"}' config.yml [--key=value ...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import axolotl.cli.config
import fire
from axolotl.cli.train import do_cli

from dft_axolotl.autoload import with_plugin
from dft_plugin.config import handover


def train(loss: Any, config: str, **options: Any) -> None:
    """Train a config with a loss, in this process."""
    with handover.swapped(axolotl.cli.config, "prepare_plugins", with_plugin(axolotl.cli.config, loss)):
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


if __name__ == "__main__":
    main(sys.argv[1:])
