"""What `dft autoload enable` does to `llamafactory.v1.trainers.sft_trainer`: `run_sft` reads our line."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from dft_llamafactory.autoload import wrap


def patch(module: ModuleType) -> None:
    """Let `run_sft`, which `train` and `sft` call with USE_V1=1, honour `loss:`."""
    wrap(module, "run_sft", _train)


def _train(plain: Callable[..., Any], request: Any) -> None:
    from dft_llamafactory.run_v1 import run_with_loss

    run_with_loss(plain, request)
