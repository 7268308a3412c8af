"""What `dft autoload enable` does to `minimal.train`: its own command honours `loss:`."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from dft_plugin.config.handover import hand_over
from dft_plugin.config.reading import Request


def patch(module: ModuleType) -> None:
    """Have `main` hand over to us where its config has the line."""
    from dft_minimal.run import read

    hand_over(module, "main", read, _train)


def _train(main: Callable[..., Any], request: Request) -> None:
    from dft_minimal.run import train_with_loss

    train_with_loss(request)
