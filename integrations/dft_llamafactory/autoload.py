"""What `dft autoload enable` does to `llamafactory.train.tuner`: `run_exp` reads our line."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def patch(module: ModuleType) -> None:
    """Let `run_exp`, through which every training of LLaMA-Factory goes, honour `loss:`."""
    wrap(module, "run_exp", _train)


def wrap(module: ModuleType, name: str, with_loss: Callable[..., Any]) -> None:
    """Have a function of LLaMA-Factory that takes its arguments hand over to ours where they have `loss:`.

    Without that line it gets what it was given. With it, LLaMA-Factory's parser never sees the key, so that
    ALLOW_EXTRA_ARGS (ALLOW_EXTRA_KEYS in v1) cannot drop it in silence.

    Args:
        module: of LLaMA-Factory.
        name: of the function; its first argument is None where the command line holds the arguments.
        with_loss: called with the function, what was read, and the function's other arguments.
    """
    plain = getattr(module, name)

    @functools.wraps(plain)
    def wrapped(args: Any = None, *rest: Any, **named: Any) -> Any:
        from dft_llamafactory import arguments

        request = arguments.read(sys.argv[1:] if args is None else args)
        return plain(args, *rest, **named) if request.loss is None else with_loss(plain, request, *rest, **named)

    vars(module)[name] = wrapped


def _train(plain: Callable[..., Any], request: Any, callbacks: Any = None) -> None:
    from dft_llamafactory.run import run_with_loss

    run_with_loss(plain, request, callbacks)
