"""One run of LLaMA-Factory's v1 trainer (USE_V1=1) with the loss active."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dft_llamafactory import conflicts_v1
from dft_llamafactory.host import LlamaFactoryHost
from dft_plugin.config.checks import refuse
from dft_plugin.config.handover import swapped
from dft_plugin.config.reading import Request
from dft_plugin.errors import ConflictError
from dft_plugin.hf import splits
from dft_plugin.hf.run import none_made
from dft_plugin.plans import plan_for


def run_with_loss(run_sft: Callable[..., Any], request: Request) -> None:
    """Run v1's `run_sft` with the loss that was asked for: it looks up the name `SFTTrainer` in its module.

    Args:
        run_sft: of `llamafactory.v1.trainers.sft_trainer`.
        request: what to run; its `loss` is set.

    Raises:
        ConflictError: the loss could not take effect; nothing was started.
        NotActiveError: the run would train, or has trained, without it.
    """
    host = LlamaFactoryHost()
    refuse(host, request.config, request.loss, conflicts_v1.find(request.config, host.installed_version()))
    from llamafactory.v1.trainers import sft_trainer

    from dft_llamafactory.trainer_v1 import LossTrainer

    plan = plan_for(request.loss)
    problems = splits.problems_elsewhere(plan, "LLaMA-Factory's v1 trainer (USE_V1)")
    if problems:
        raise ConflictError(problems)
    made: list[LossTrainer] = []

    def make(**given: Any) -> LossTrainer:
        made.append(LossTrainer(plan, **given))
        return made[-1]

    with swapped(sft_trainer, "SFTTrainer", make):
        run_sft(request.args)
    if not made:
        raise none_made("v1 SFTTrainer")
