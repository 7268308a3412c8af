"""Division by a sum of weights: it is known after the last backward pass of a step, whose gradients are multiplied.

A micro-batch is divided by the target tokens of the whole step, as for any objective. What was to be divided by the
sum of weights (or by the kept tokens) is then too small by the mean weight, which all gradients share.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dft_plugin.core.loss import LossResult
from dft_plugin.core.transfer import bring
from dft_plugin.errors import ConflictError
from dft_plugin.hf.counting import tensor_parallel_size
from dft_plugin.hf.graph import made_of
from dft_plugin.objectives import Weigher


@dataclass
class Rescaling:
    """One optimizer step that is divided by more than its target tokens.

    Where a loader ends within a step, the trainer goes on with its gradients in the next epoch. Both windows of
    micro-batches are one step here, too.

    Attributes:
        count: its target tokens, by which the losses were divided; of all ranks.
        divisors: what each answered call adds to what should have been.
        losses: of the micro-batches that went backward, divided by `count`.
        sources: nodes of the graph from which the losses of the micro-batch are made.
        objective: gave the last weights.
        looked: whether it is known that nobody takes gradients inside the backward pass.
    """

    count: Tensor | None = None
    divisors: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    sources: list[Any] = field(default_factory=list)
    objective: Weigher | None = None
    looked: bool = False

    def expect(self, count: Tensor | None) -> None:
        """Take the number of targets of the micro-batches that were fetched."""
        if not self.losses:
            self.count = count
        elif self.count is not None and count is not None:
            self.count = self.count + count

    def add(self, result: LossResult, auxiliary: Tensor | None) -> None:
        """Take what one call scored.

        Args:
            result: what was scored.
            auxiliary: what the model adds to any loss.

        Raises:
            ConflictError: there is an auxiliary loss, which would be multiplied, too.
        """
        if result.objective.divisor == "tokens":
            return
        if auxiliary is not None:
            raise ConflictError([auxiliary_problem(result.objective.name)])
        self.objective = result.objective
        self.divisors.append(result.divisor)
        if result.loss_sum.grad_fn is not None:
            self.sources.append(result.loss_sum.grad_fn)

    def require_nothing_else(self, returned: Any, trainer: Any) -> None:
        """Check that what goes backward is made of our losses, all of them and nothing else.

        Args:
            returned: what the trainer's `compute_loss` returned: the loss, or it and more.
            trainer: whose `compute_loss` it is.

        Raises:
            ConflictError: it is not.
        """
        objective, sources, self.sources = self.objective, self.sources, []
        if objective is None or not sources:
            return
        if not self.looked:
            why = f"{objective.name} {divides(objective)}, for which gradients are multiplied at its end"
            require_steps_outside(trainer, why, "another objective")
            self.looked = True
        loss: Tensor = returned[0] if isinstance(returned, tuple) else returned
        reached, leaves = made_of(loss, sources)
        # TRL's hook has a leaf of its own there.
        trained = {id(parameter) for parameter in trainer.model.parameters()} if leaves else set()
        if len(reached) < len(set(sources)) or any(id(leaf) in trained for leaf in leaves):
            raise ConflictError(
                [
                    f"{type(trainer).__name__}.compute_loss makes its loss of more, or of less, than the model's own "
                    f"answer. {objective.name} {divides(objective)}, for which gradients are multiplied at its end: "
                    "what is added would be multiplied, too. Return what super().compute_loss(...) returns, or choose "
                    "an objective that divides by tokens."
                ]
            )

    def finish(self, trainer: Any, loss: Tensor) -> Tensor:
        """End a micro-batch, and the step with its last one: then multiply the gradients, before they are clipped.

        In bfloat16 that rounds them once more. What a loss scaler has multiplied is still multiplied by it.

        Every rank must call it.

        Args:
            trainer: whose step it is.
            loss: what its `training_step` returned.

        Returns:
            What is to be logged: zero, and the loss of the whole step for its last micro-batch.
        """
        if not self.divisors:
            return loss
        self.losses.append(loss)
        if not trainer.accelerator.sync_gradients:
            return torch.zeros_like(loss)
        factor = self._factor(trainer)
        for gradient in gradients(trainer):
            gradient.mul_(factor.to(gradient.device))
        total = torch.stack(self.losses).sum() * factor.to(loss)
        self.divisors, self.losses = [], []
        return total

    def _factor(self, trainer: Any) -> Tensor:
        accelerator = trainer.accelerator
        divisor = torch.stack([part.to(accelerator.device) for part in self.divisors]).sum()
        # Copies that share the tokens have added them once each.
        divisor = accelerator.reduce(divisor, reduction="sum") / tensor_parallel_size(trainer)
        assert self.count is not None
        count = self.count.to(divisor)
        # Without any weight all gradients are zero.
        return torch.where(divisor == 0, torch.ones_like(divisor), count / divisor)


def gradients(trainer: Any) -> Iterator[Tensor]:
    """Yield the gradients of all that is trained, each once; those that are sharded, this rank's part."""
    for parameter in _parameters(trainer):
        if parameter.grad is not None:
            yield _mine(parameter.grad)


def are_finite(trainer: Any, whole: Tensor | None = None) -> bool:
    """Say whether what is trained is finite on all ranks. Every rank must call it; waits for the device.

    Args:
        trainer: whose weights.
        whole: what else has to be: a scalar.
    """
    device = trainer.accelerator.device
    odd = torch.zeros(1, device=device)
    every = [_mine(parameter.detach()) for parameter in _parameters(trainer) if parameter.requires_grad]
    for mine in [*every, *([] if whole is None else [whole.reshape(1)])]:
        with suppress(RuntimeError, TypeError):
            # A tensor of a kind that has no extremes (on meta, a quantised one of its own class) ends no run.
            odd += bring(_is_odd(mine), device)
    return not float(trainer.accelerator.reduce(odd, reduction="sum"))


def _is_odd(tensor: Tensor) -> Tensor:
    if not tensor.numel():
        return torch.zeros((), dtype=torch.bool)
    # Unlike `isfinite` extremes make no tensor of that size.
    extremes = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).aminmax()
    return torch.stack(extremes).isfinite().all().logical_not()


def _parameters(trainer: Any) -> list[Any]:
    groups = [] if trainer.optimizer is None else trainer.optimizer.param_groups
    parameters = [*trainer.model.parameters(), *(one for group in groups for one in group["params"])]
    return list({id(parameter): parameter for parameter in parameters}.values())


def _mine(tensor: Any) -> Tensor:
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


_STEPS_INSIDE = ("layerwise", "lomo")
"""Parts of the names of transformers' optimizers that step inside the backward pass."""

_REDUCE_INSIDE = {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}
"""Engines of accelerate that hold gradients where nobody else finds them."""


_AVERAGES = "Trainer._sync_replicated_trainable_parameters."
"""A hook of transformers' (5.24) that averages over ranks what nobody else does: adapters on a model in parts."""


def steps_inside(trainer: Any) -> tuple[str | None, str | None]:
    """Return who takes gradients before a backward pass is over, an engine and an optimizer; None: nobody is known."""
    engine = _REDUCE_INSIDE.get(trainer.accelerator.distributed_type.name)
    if getattr(trainer, "use_apex", False):
        engine = "Apex"
    optimizer = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    return engine, optimizer if any(part in optimizer for part in _STEPS_INSIDE) else None


def auxiliary_problem(name: str) -> str:
    """Say why a model with a router's loss cannot be trained with an objective of that name."""
    return (
        f"{name} does not divide by tokens, so that all gradients of a step are multiplied at its end, and the model "
        "adds an auxiliary loss (of its router), which would be multiplied, too. Set `output_router_logits: false` "
        "(in TRL: `router_aux_loss_coef: 0.0`), or choose an objective that divides by tokens."
    )


def divides(objective: Weigher) -> str:
    """Say by what an objective divides that does not divide by tokens."""
    by = "sum of its weights" if objective.divisor == "weights" else "number of tokens that it keeps"
    return f"divides by the {by} in a whole step"


def require_steps_outside(trainer: Any, why: str, instead: str, harmless: str = "") -> None:
    """Check that nobody uses up the gradients inside the backward pass; the optimizer is made.

    Args:
        trainer: that trains.
        why: for what they are needed after it, as the beginning of a sentence.
        instead: what else may be chosen.
        harmless: a package whose hooks and engines do nothing that matters.

    Raises:
        ConflictError: somebody does.
    """
    packages = {_package(cls) for cls in type(getattr(trainer, "model_wrapped", None)).__mro__}
    if "deepspeed" in packages - {harmless}:
        # As accelerate calls it; of one that accelerate made it is known beforehand.
        raise ConflictError(
            [f"{why}; DeepSpeed's engine steps inside the backward pass. Use DDP or FSDP, or {instead}."]
        )
    for name, parameter in trainer.model.named_parameters():
        every = (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values()
        hooks = [hook for hook in every if not harmless or _package(hook) != harmless]
        names = [getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks]
        taking = [hook for hook in names if not hook.startswith(_AVERAGES)]
        if taking:
            raise ConflictError(
                [
                    f"{why}; {taking[0]} takes that of {name} inside the backward pass (a layer-wise optimizer, or "
                    f"one that keeps its state on the CPU). Choose an optimizer that steps afterwards, or {instead}."
                ]
            )


def _package(of: Any) -> str:
    """Return the package of a function or a class; empty for what says none, as a built-in function."""
    return str(getattr(of, "__module__", None) or "").partition(".")[0]
