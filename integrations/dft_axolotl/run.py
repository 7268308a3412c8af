"""Axolotl's training module with the loss active; what `dft train` lets a launcher start on each rank.

accelerate launch -m dft_axolotl.run --dft-loss '{"name": "dft"}' config.yml [--key=value ...]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import axolotl.cli.config
import fire
from axolotl.cli.train import do_cli

from dft_axolotl.autoload import patch


def train(loss: Any, config: str, **options: Any) -> None:
    """Train a config with a loss, in this process."""
    original = axolotl.cli.config.prepare_plugins
    patch(axolotl.cli.config, loss)
    try:
        do_cli(config, **options)
    finally:
        axolotl.cli.config.prepare_plugins = original


def main(argv: list[str]) -> None:
    """Take our argument, and leave the others to Axolotl, which reads `sys.argv` too."""
    at = argv.index("--dft-loss")
    loss = json.loads(argv[at + 1])
    sys.argv[1:] = argv[:at] + argv[at + 2 :]

    def do(config: str, **options: Any) -> None:
        train(loss, config, **options)

    fire.Fire(do)


if __name__ == "__main__":
    main(sys.argv[1:])
