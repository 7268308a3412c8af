"""One run of LLaMA-Factory's v1 trainer (USE_V1=1) with the loss active."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from dft_llamafactory import conflicts
from dft_llamafactory.arguments import Request
from dft_llamafactory.install import refuse
from dft_plugin.errors import NotActiveError
from dft_plugin.functional import plan_for


def run_with_loss(run_sft: Callable[..., Any], request: Request) -> None:
    """Run v1's `run_sft` with the loss that was asked for.

    Args:
        run_sft: of `llamafactory.v1.trainers.sft_trainer`.
        request: what to run; its `loss` is set.

    Raises:
        ConflictError: the loss could not take effect; nothing was started.
        NotActiveError: the run would train, or has trained, without it.
    """
    refuse(request.loss, conflicts.find_v1(request.config, metadata.version("llamafactory")))
    with activating(request.loss) as made:
        run_sft(request.args)
    if not made:
        raise NotActiveError(
            "the run ended without the loss that `loss:` asks for: LLaMA-Factory made a trainer that is not its v1 "
            "SFTTrainer. Do not use what it saved. Leave out `loss:`, or report the configuration."
        )


@contextmanager
def activating(loss: Any) -> Iterator[list[Any]]:
    """Make `run_sft` train with `loss` inside this block: it looks up the name `SFTTrainer` in its module.

    Yields:
        The trainers that were made.
    """
    from llamafactory.v1.trainers import sft_trainer

    from dft_llamafactory.trainer_v1 import LossTrainer

    plan = plan_for(loss)
    plain = sft_trainer.SFTTrainer
    made: list[Any] = []

    def make(**given: Any) -> LossTrainer:
        trainer = LossTrainer(plan, **given)
        made.append(trainer)
        return trainer

    sft_trainer.SFTTrainer = make
    try:
        yield made
    finally:
        sft_trainer.SFTTrainer = plain
