"""What `dft autoload enable` does to LLaMA-Factory: the function that its commands go through reads our line."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from dft_llamafactory import arguments
from dft_plugin.config.handover import hand_over
from dft_plugin.errors import ConflictError


def patch(module: ModuleType) -> None:
    """Let that function honour `loss:`, so that ALLOW_EXTRA_ARGS (ALLOW_EXTRA_KEYS in v1) cannot drop the key."""
    name, with_loss = _OURS[module.__name__]
    hand_over(module, name, arguments.read_if_ours, with_loss)


def _train(run_exp: Callable[..., Any], request: Any, callbacks: Any = None) -> None:
    from dft_llamafactory.run import run_with_loss

    run_with_loss(run_exp, request, callbacks)


def _train_v1(run_sft: Callable[..., Any], request: Any) -> None:
    from dft_llamafactory.run_v1 import run_with_loss

    run_with_loss(run_sft, request)


def _refuse_in_v1(*_: Any) -> None:
    """Refuse `loss:` in v1's other commands; `run_sft` calls this as well, when our line was taken out."""
    raise ConflictError(
        [
            "`loss`: of LLaMA-Factory's v1 commands only `train` and `sft` can train it; the others (`rm`, `dpo`, "
            "...) have losses of their own. Start `USE_V1=1 llamafactory-cli sft`, or leave out `loss:`."
        ]
    )


_OURS: dict[str, tuple[str, Callable[..., None]]] = {
    "llamafactory.train.tuner": ("run_exp", _train),
    "llamafactory.v1.trainers.sft_trainer": ("run_sft", _train_v1),
    "llamafactory.v1.config.arg_parser": ("get_args", _refuse_in_v1),
}
"""By module of LLaMA-Factory: the function, and what it hands over to."""
