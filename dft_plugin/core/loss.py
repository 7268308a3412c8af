"""LossResult: from hidden states or logits to the loss of a step. The only division.

Shapes: N positions (flattened), T scored ones, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dft_plugin.core.plan import LossPlan
from dft_plugin.core.stats import LossStats, added_to_divisor
from dft_plugin.core.targets import IGNORE_INDEX, Facts, Selection, select
from dft_plugin.core.transfer import send
from dft_plugin.errors import LabelError
from dft_plugin.kernels import (
    Head,
    KernelResult,
    OpaqueHead,
    ShardedHead,
    opaque,
    score_logits,
    vocab_parallel,
)
from dft_plugin.kernels.results import pick, with_extra
from dft_plugin.objectives import Targets, Weigher

NumItems = int | float | Tensor | None
"""Target tokens of the whole optimizer step (all micro-batches, all ranks); None: what is scored here is the step."""


@dataclass(frozen=True)
class LossResult:
    """What one forward pass scored: a sum and its statistics, not divided yet.

    Attributes:
        scored: the loss sum, and what is known of each of the T scored tokens.
        targets: these tokens, on the device of the loss.
        selection: where they stand; on the CPU.
        objective: what gave the weights.
        names: values of the objective that are logged, in the whole run.
    """

    scored: KernelResult
    targets: Targets
    selection: Selection
    objective: Weigher
    names: tuple[str, ...] = ()

    @property
    def loss_sum(self) -> Tensor:
        """Sum of the losses, differentiable."""
        return self.scored.loss_sum

    @property
    def count(self) -> int:
        """T, the number of scored tokens."""
        return self.selection.count

    @property
    def weights(self) -> Tensor:
        """What the loss of each token is multiplied by, [T], detached."""
        weight_T, soft_T = self.scored.weight_T, self.scored.soft_T
        return weight_T if soft_T is None or not self.objective.replaces_target else weight_T + soft_T

    @property
    def divisor(self) -> Tensor:
        """What is added here to what the step is divided by: a scalar, detached, float64 (or the device's widest)."""
        weight_T = self.weights
        wide = torch.float32 if weight_T.device.type == "mps" else torch.float64
        return added_to_divisor(self.objective.divisor, weight_T.to(wide)).sum()

    def mean(self, num_items: NumItems = None) -> Tensor:
        """Divide the sum, as the objective asks for.

        Args:
            num_items: target tokens of the optimizer step; None: what is scored here is the whole step.

        Raises:
            LabelError: `num_items` is impossible, or the objective does not divide by it.
        """
        if num_items is not None:
            _require_any_split(self.objective)
            return normalise(self.loss_sum, num_items)
        return self.relative(self.count)

    def relative(self, num_items: float | Tensor) -> Tensor:
        """Divide the sum by a number of tokens as if what is scored here were all; so an evaluation means its batches.

        Args:
            num_items: tokens of the batch, as somebody counts them who counts each as one.
        """
        mean = normalise(self.loss_sum, num_items)
        return mean if self.objective.divisor == "tokens" else mean * self.factor.to(mean)

    @property
    def factor(self) -> Tensor:
        """By what a mean over the tokens is smaller than what the objective asks for; a scalar, as `divisor`."""
        divisor = self.divisor
        # All weights are 0, and so is the sum.
        return torch.where(divisor == 0, torch.ones_like(divisor), self.count / divisor)

    def stats(self, eos_token_ids: tuple[int, ...] = (), counted_T: Tensor | None = None) -> LossStats:
        """Sum up for the log.

        Args:
            eos_token_ids: the ids that end a sequence; their probability is summed apart.
            counted_T: bool, on the CPU, which tokens the log is to count; None: all.
        """
        scored, ids_T = replace(self.scored, weight_T=self.weights), self.targets.ids_T
        if counted_T is not None:
            index_C = send(counted_T.nonzero()[:, 0], scored.loss_T.device)
            scored, ids_T = pick(scored, index_C), ids_T[index_C]
        return LossStats.of_tokens(scored, ids_T, eos_token_ids, self.names, self.objective.divisor)


def _require_any_split(objective: Weigher) -> None:
    """Refuse the number of a step's tokens where a part of the step can make nothing of it."""
    problem = None
    if objective.divisor != "tokens":
        by = "sum of its weights" if objective.divisor == "weights" else "number of the tokens that it keeps"
        problem = f"divides by the {by}, which is known when all parts of an optimizer step were scored"
    elif objective.scope == "batch":
        problem = "weighs a token by all others of an optimizer step, which are not in a part of it"
    if problem is not None:
        raise LabelError(
            f"num_items (or num_items_in_batch) was given, and {objective.name} {problem}. Leave it out where one "
            "call scores a whole step; to accumulate gradients or train on several ranks, use "
            "dft_plugin.activate(trainer)."
        )


def normalise(loss_sum: Tensor, num_items: float | Tensor) -> Tensor:
    """Divide a loss sum by a number of target tokens.

    Args:
        loss_sum: sum over the scored tokens.
        num_items: a number, or a tensor that holds one, of any dtype and on any device.

    Returns:
        The mean, or the sum (zero, connected to the graph) where there is no target at all.

    Raises:
        LabelError: `num_items` is negative, not finite or holds more than one number. The value of a
            tensor on an accelerator is not checked, since that would wait for it.
    """
    if isinstance(num_items, Tensor) and num_items.numel() != 1:
        raise LabelError(
            f"num_items has shape {tuple(num_items.shape)}; one number is allowed. nn.DataParallel makes it a "
            "vector: start one process per GPU instead (accelerate launch, torchrun)."
        )
    if not isinstance(num_items, Tensor) or num_items.device.type == "cpu":
        number = _read(num_items) if isinstance(num_items, Tensor) else float(num_items)
        if not (math.isfinite(number) and number >= 0):
            raise LabelError(f"num_items is {number:g}; it counts target tokens, so 0 or more is allowed.")
        return loss_sum / (number or 1.0)
    divisor = num_items.reshape(()).to(loss_sum)
    return loss_sum / torch.where(divisor == 0, torch.ones_like(divisor), divisor)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
def _read(number: Tensor) -> float:
    """Read a number on the CPU outside what is compiled, where dynamo would break the graph with a warning."""
    return float(number)


def hidden_loss(
    plan: LossPlan,
    hidden: Tensor,
    head: Head | ShardedHead | OpaqueHead,
    labels: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    facts: Facts | None = None,
) -> LossResult:
    """Score hidden states [..., D] against aligned labels [...], never holding all logits.

    Args:
        plan: objective, kernel, scratch memory.
        hidden: what the model gives to its head.
        head: the head: readable, this rank's part of one, or opaque.
        labels: aligned (already shifted) labels; positions with `ignore_index` never reach a GEMM.
        ignore_index: the label of positions that are not scored.
        facts: what else is known of the positions, and how far the run is.

    Raises:
        LabelError: shapes do not match, or a label is outside the vocabulary.
        ClockError: the plan changes during the run, and `facts` has no clock.
    """
    _require_one_per_position(hidden, labels)
    chosen = select(labels, ignore_index, facts)
    return score_hidden(plan, chosen.rows(hidden), head, chosen)


def score_hidden(
    plan: LossPlan,
    hidden_TD: Tensor,
    head: Head | ShardedHead | OpaqueHead,
    chosen: Selection,
) -> LossResult:
    """Score the hidden states of the positions that were chosen.

    Args:
        plan: objective, kernel, scratch memory.
        hidden_TD: of these positions only.
        head: the head: readable, this rank's part of one, or opaque.
        chosen: the positions and their targets.

    Raises:
        LabelError: a target is outside the vocabulary.
    """
    chosen.require_within(head.vocab_size)
    targets = chosen.targets(hidden_TD.device)
    if chosen.facts.reference is not None:
        targets = chosen.facts.reference.fill(targets, chosen, head)
    kernel: Callable[..., KernelResult] = plan.kernel
    if not isinstance(head, Head):
        kernel = vocab_parallel if isinstance(head, ShardedHead) else opaque
    objective = plan.weigher(targets.clock)
    scored = kernel(hidden_TD, head, targets, objective, needs=plan.wanted, scratch_bytes=plan.scratch_bytes)
    return LossResult(with_extra(scored, plan.extra), targets, chosen, objective, plan.statistics)


def logits_loss(
    plan: LossPlan,
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    facts: Facts | None = None,
    kernel: Callable[..., KernelResult] = score_logits,
) -> LossResult:
    """Score logits [..., V] against aligned labels [...].

    Args:
        plan: the objective.
        logits: transformed logits, as the model returns them.
        labels: aligned (already shifted) labels.
        ignore_index: the label of positions that are not scored.
        facts: what else is known of the positions, and how far the run is.
        kernel: `score_logits`, or `score_logits_` where the logits may be overwritten.

    Raises:
        LabelError: shapes do not match, or a label is outside the vocabulary.
    """
    _require_one_per_position(logits, labels)
    chosen = select(labels, ignore_index, facts)
    chosen.require_within(logits.shape[-1])
    positions_T, targets = send(chosen.positions_T, logits.device), chosen.targets(logits.device)
    if chosen.facts.reference is not None:
        targets = chosen.facts.reference.fill(targets, chosen, None)
    logits_NV = logits.reshape(-1, logits.shape[-1])
    objective = plan.weigher(targets.clock)
    scored = kernel(logits_NV, positions_T, targets, objective, needs=plan.wanted)
    return LossResult(with_extra(scored, plan.extra), targets, chosen, objective, plan.statistics)


def _require_one_per_position(scored: Tensor, labels: Tensor) -> None:
    if scored.shape[:-1] != labels.shape:
        raise LabelError(
            f"labels have shape {tuple(labels.shape)}, but {tuple(scored.shape[:-1])} positions are to be "
            "scored; give one label per position."
        )
