"""What of a plan cannot be the same however a step is split, and which engines do not let it be mended.

A step is split into micro-batches, over ranks, and each sequence over ranks.
"""

from __future__ import annotations

from typing import Any

from dft_plugin.core.plan import LossPlan
from dft_plugin.errors import ConflictError
from dft_plugin.hf import finite
from dft_plugin.hf.counting import averaging_processes, context_parallel_size
from dft_plugin.hf.model import unwrap
from dft_plugin.hf.rescaling import auxiliary_problem, divides, steps_inside
from dft_plugin.objectives import Weigher


def problems(trainer: Any, plan: LossPlan) -> list[str]:
    """List what would make the loss of a step depend on how it is split: each with what to change.

    Args:
        trainer: that is to be trained.
        plan: what is to be computed.
    """
    found = []
    for one in plan.every:
        if one.scope == "batch":
            found += _splits_of_batch(trainer, one)
        if (one.places or one.scope != "token") and (degree := context_parallel_size(trainer)) > 1:
            found.append(
                f"{one.name} looks at whole sequences, and context parallelism splits each over {degree} ranks. Set "
                "cp_size to 1, or choose an objective that looks at single tokens."
            )
        if one.divisor != "tokens":
            found += _engines(trainer, one)
    return list(dict.fromkeys([*found, *finite.problems(trainer, plan)]))


def require_whole(trainer: Any, plan: LossPlan) -> None:
    """Check again when training starts: arguments may have been changed since.

    Raises:
        ConflictError: what `problems` lists.
    """
    found = problems(trainer, plan)
    if found:
        raise ConflictError(found)


def problems_elsewhere(plan: LossPlan, trainer: str) -> list[str]:
    """List what a trainer cannot compute that splits its steps and knows nothing of a plan's sums.

    Args:
        plan: what is to be computed.
        trainer: what to call it.
    """
    divided = [
        f"{one.name} {divides(one)}, which {trainer} does not know. Choose an objective that divides by tokens."
        for one in plan.every
        if one.divisor != "tokens"
    ]
    whole = [
        f"{one.name} weighs a token by all others of an optimizer step, which {trainer} splits. Choose another "
        "objective."
        for one in plan.every
        if one.scope == "batch"
    ]
    return divided + whole


def _splits_of_batch(trainer: Any, objective: Weigher) -> list[str]:
    why = f"{objective.name} weighs a token by all others of an optimizer step"
    steps, ranks, found = trainer.args.gradient_accumulation_steps, averaging_processes(trainer), []
    if steps > 1:
        found.append(
            f"{why}, and gradient_accumulation_steps is {steps}: a micro-batch knows nothing of the others. Set it "
            "to 1, with a larger per_device_train_batch_size."
        )
    if ranks > 1:
        found.append(f"{why}, and {ranks} ranks have a part of it each. Train on one, or choose another objective.")
    return found


def _engines(trainer: Any, objective: Weigher) -> list[str]:
    why = f"{objective.name} {divides(objective)}, for which gradients are multiplied at its end"
    engine, optimizer = steps_inside(trainer)
    found = []
    if engine is not None:
        found.append(f"{why}, and {engine} has taken them by then. Use DDP or FSDP, or another objective.")
    if optimizer is not None:
        found.append(
            f"{why}, and the optimizer {optimizer} has stepped inside the backward pass by then. Choose one that "
            "steps afterwards, or another objective."
        )
    if _adds_auxiliary(trainer):
        found.append(auxiliary_problem(objective.name))
    return found


def _adds_auxiliary(trainer: Any) -> bool:
    """Whether the model says that it adds a router's loss; what does not say so is seen in the first step."""
    # TRL asks for it by an argument of its own.
    if getattr(trainer, "aux_loss_enabled", False):
        return True
    model: Any = unwrap(trainer.model)
    return bool(getattr(model.config.get_text_config(), "output_router_logits", False))


def require_counted(trainer: Any, objective: Weigher, steps: int) -> None:
    """Check that a step whose targets could not be counted is whole.

    Args:
        trainer: that is trained.
        objective: that gives the weights now.
        steps: micro-batches of the step.

    Raises:
        ConflictError: it is split, and the objective needs to know all of it.
    """
    if objective.divisor != "tokens" and (steps > 1 or averaging_processes(trainer) > 1):
        raise ConflictError(
            [
                f"{objective.name} {divides(objective)}, and the batches of {type(trainer).__name__} carry no "
                "`labels` from which the size of a step could be told. Have the collator make `labels`, "
                "one rank with gradient_accumulation_steps 1, or choose another objective."
            ]
        )
