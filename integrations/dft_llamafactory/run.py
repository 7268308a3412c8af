"""LLaMA-Factory's training with the loss active; what `dft train` starts on each rank.

python -m dft_llamafactory.run [--dft-settings '{"name": "dft"}'] cfg.yaml [key=value ...]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback

from dft_llamafactory import arguments, conflicts
from dft_llamafactory.arguments import Request
from dft_llamafactory.conflicts_v1 import uses_v1
from dft_llamafactory.host import LlamaFactoryHost
from dft_plugin.config import handover
from dft_plugin.config.checks import refuse
from dft_plugin.errors import SettingsError
from dft_plugin.hf.callbacks import MustBeActive
from dft_plugin.hf.run import activating

_WHY = (
    "LLaMA-Factory made a trainer that is not its CustomSeq2SeqTrainer. Nothing was updated. Leave out `loss:`, or "
    "report the configuration."
)


def run_with_loss(
    run_exp: Callable[..., Any], request: Request, callbacks: Iterable[TrainerCallback] | None = None
) -> None:
    """Run LLaMA-Factory's `run_exp` with the loss that was asked for.

    Args:
        run_exp: of `llamafactory.train.tuner`.
        request: what to run; its `loss` is set.
        callbacks: of the caller, passed on.

    Raises:
        ConflictError: the loss could not take effect; nothing was started.
        NotActiveError: the run would train, or has trained, without it.
    """
    found = conflicts.find(request.config, os.environ)
    refuse(LlamaFactoryHost(), request.config, request.loss, found)
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

    from dft_llamafactory.columns import carrying

    with carrying(request.loss), activating(CustomSeq2SeqTrainer, request.loss) as made:
        run_exp(request.args, [*(callbacks or ()), MustBeActive(lambda: bool(made), _WHY)])


def main(words: Sequence[str]) -> None:
    """Train as `llamafactory-cli train` does in one process.

    Args:
        words: of the command line; where they carry no loss, the config's own `loss:` holds, for launchers of one's
            own (`accelerate launch -m dft_llamafactory.run sft.yaml`).

    Raises:
        SettingsError: there is no loss to train with.
    """
    loss, words = handover.take(words)
    request = arguments.read(words)
    if loss is not None:
        request = replace(request, loss=loss)
    if request.loss is None:
        raise SettingsError(["no `loss:` was given. Add the line `loss: dft` to the config."])
    if uses_v1(os.environ):
        from llamafactory.v1.trainers.sft_trainer import run_sft

        from dft_llamafactory import run_v1

        run_v1.run_with_loss(run_sft, request)
    else:
        from llamafactory.train.tuner import run_exp

        run_with_loss(run_exp, request)


if __name__ == "__main__":
    main(sys.argv[1:])
