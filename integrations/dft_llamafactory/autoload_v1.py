"""What `dft autoload enable` does to `llamafactory.v1.trainers.sft_trainer`: `run_sft` reads our line."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any


def patch(module: ModuleType) -> None:
    """Let `run_sft`, which `train` and `sft` call with USE_V1=1, honour `loss:`.

    Without that line it gets what it was given. With it, v1's parser never sees the key, so that
    ALLOW_EXTRA_KEYS cannot drop it in silence.
    """
    plain = module.run_sft

    @functools.wraps(plain)
    def run_sft(args: Any = None) -> Any:
        from dft_llamafactory import arguments

        request = arguments.read(sys.argv[1:] if args is None else args)
        if request.loss is None:
            return plain(args)
        from dft_llamafactory.install_v1 import run_with_loss

        return run_with_loss(plain, request)

    vars(module)["run_sft"] = run_sft
