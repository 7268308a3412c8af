"""What `dft autoload enable` does to `llamafactory.train.tuner`: `run_exp` reads our line."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any


def patch(module: ModuleType) -> None:
    """Let `run_exp`, through which every training of LLaMA-Factory goes, honour `loss:`.

    Without that line it gets what it was given. With it, LLaMA-Factory's parser never sees the key, so that
    ALLOW_EXTRA_ARGS cannot drop it in silence.
    """
    plain = module.run_exp

    @functools.wraps(plain)
    def run_exp(args: Any = None, callbacks: Any = None) -> Any:
        from dft_llamafactory import arguments

        request = arguments.read(sys.argv[1:] if args is None else args)
        if request.loss is None:
            return plain(args, callbacks)
        from dft_llamafactory.install import run_with_loss

        return run_with_loss(plain, request, callbacks)

    vars(module)["run_exp"] = run_exp
