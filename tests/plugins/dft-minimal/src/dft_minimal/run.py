"""minimal's training with the loss active; what `dft train` starts.

python -m dft_minimal.run [--dft-settings '{"name": "dft"}'] CONFIG [key=value ...]
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dft_minimal.host import MinimalHost
from dft_plugin.config import handover
from dft_plugin.config.checks import refuse
from dft_plugin.config.hosts import Launch
from dft_plugin.config.reading import Request, load


def read(words: Sequence[str]) -> Request:
    """Read a command line: our key apart from the host's."""
    return load(Path(words[0]), words[1:]).request()


def train_with_loss(request: Request) -> None:
    """Refuse what is in the way, then run the host's own training, its trainer with the loss."""
    host = MinimalHost()
    refuse(host, request.config, request.loss, host.conflicts(request.config))
    from minimal.train import TokenTrainer, train

    from dft_plugin.hf.run import training

    with training(TokenTrainer, request.loss):
        train(dict(request.config))


def show(launch: Launch, columns: Sequence[str]) -> Any:
    """Return the trainer that a run begins with, for `dft reference`."""
    from minimal.train import TokenTrainer, train

    from dft_plugin.hf.run import first_trainer

    request = read([launch.config_path, *(f"{key}={text}" for key, text in launch.overrides)])
    return first_trainer(TokenTrainer, lambda: train(dict(request.config)), columns)


def main(words: Sequence[str]) -> None:
    """Train, on each rank."""
    train_with_loss(handover.requested(words, read))


if __name__ == "__main__":
    from dft_plugin.hf.run import saying

    saying(main, sys.argv[1:])
