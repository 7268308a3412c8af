"""LLaMA-Factory's training: with the loss active, as `dft train` starts it on each rank, or up to its trainer.

python -m dft_llamafactory.run [--dft-settings '{"name": "dft"}'] cfg.yaml [key=value ...]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from dft_llamafactory import arguments, conflicts, conflicts_v1, workers
from dft_llamafactory.conflicts_v1 import uses_v1
from dft_llamafactory.host import LlamaFactoryHost
from dft_plugin.config import handover
from dft_plugin.config.checks import refuse
from dft_plugin.config.hosts import Launch
from dft_plugin.config.reading import Request
from dft_plugin.config.rules import find
from dft_plugin.errors import ConflictError
from dft_plugin.hf.callbacks import MustBeActive
from dft_plugin.hf.run import first_trainer, saying, training


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
    given = list(callbacks or ())
    if conflicts.uses_ray(os.environ):
        with workers.carrying(request.loss) as guard:
            run_exp(request.args, [*given, guard])
    else:
        with _active(request.loss) as ours:
            run_exp(request.args, [*given, ours])


def train_on_worker(config: Mapping[str, Any], loss: Any) -> None:
    """Train on a worker of Ray's; see `workers.py` for how it gets here.

    Args:
        config: of LLaMA-Factory: `args` and `callbacks`.
        loss: what stands after `loss:`.
    """
    from llamafactory.train import tuner

    with _active(loss) as ours:
        tuner._training_function({**config, "callbacks": [*workers.without_guard(config["callbacks"]), ours]})


@contextmanager
def _active(loss: Any) -> Iterator[TrainerCallback]:
    """Have LLaMA-Factory's own training in this process, inside this block, train a loss. Yields a callback for it."""
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

    from dft_llamafactory.card import completing
    from dft_llamafactory.columns import keeping

    with completing(), training(CustomSeq2SeqTrainer, loss, keeping) as made:
        yield MustBeActive(lambda: bool(made), conflicts.OTHER_TRAINER)


def main(words: Sequence[str]) -> None:
    """Train as `llamafactory-cli train` does in one process; also where somebody's own launcher starts it.

    Raises:
        SettingsError: there is no loss to train with.
    """
    request = handover.requested(words, arguments.read)
    if uses_v1(os.environ):
        from llamafactory.v1.trainers.sft_trainer import run_sft

        from dft_llamafactory import run_v1

        run_v1.run_with_loss(run_sft, request)
    else:
        from llamafactory.train.tuner import run_exp

        run_with_loss(run_exp, request)


def show(launch: Launch, columns: Sequence[str]) -> Any:
    """Return a trainer that is made as LLaMA-Factory's command does.

    Raises:
        ConflictError: rows are packed such that one is no sequence of tokens, or it is the v1 trainer.
    """
    config = _of_launch(launch)
    found = find(conflicts.BEFOREHAND_RULES, config, "{key}: {value}")
    if found:
        raise ConflictError(list(map(str, found)))
    return _first_trainer(launch, config, columns)


def evaluator(launch: Launch, columns: Sequence[str]) -> Any:
    """Return a trainer that is made as LLaMA-Factory's command does, to evaluate a loss and not to generate.

    Raises:
        ConflictError: it is the v1 trainer.
    """
    return _first_trainer(launch, _of_launch(launch) | {"predict_with_generate": False}, columns)


def _of_launch(launch: Launch) -> dict[str, Any]:
    """Return the keys of a config.

    Raises:
        ConflictError: they are the v1 trainer's.
    """
    if uses_v1(os.environ):
        raise ConflictError([str(conflicts_v1.BEFOREHAND)])
    words = [launch.config_path, *(f"{key}={text}" for key, text in launch.overrides)]
    return dict(arguments.read(words).config)


def _first_trainer(launch: Launch, config: dict[str, Any], columns: Sequence[str]) -> Any:
    if config.get("dataset"):
        # What is there may be of another template or loss.
        config["tokenized_path"] = None
    # Of a training on several devices, and of an upload.
    config |= {"push_to_hub": False, "deepspeed": None, "fsdp": "", "ddp_backend": None}
    from llamafactory.extras.misc import get_device_count
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
    from llamafactory.train.tuner import run_exp

    from dft_llamafactory.columns import keeping

    if get_device_count() > 1:
        raise ConflictError([conflicts.MANY_DEVICES.format(config=launch.config_path)])
    with workers.none():
        return first_trainer(CustomSeq2SeqTrainer, lambda: run_exp(config), columns, keeping)


if __name__ == "__main__":
    saying(main, sys.argv[1:])
