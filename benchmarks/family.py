"""What an objective costs that knows more than a row, beside DFT on the same frozen head."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.problem import HiddenInputs
from dft_plugin.core.loss import hidden_loss
from dft_plugin.core.reference import Referred, Wanted
from dft_plugin.core.targets import Facts
from dft_plugin.kernels import Head
from dft_plugin.objectives import Clock, Objective, Rows, Scope, Targets
from dft_plugin.plans import LossLike, plan_for

SEQUENCES = 4

Loss = Callable[[HiddenInputs], Tensor]


class OverTheMean(Objective):
    """p over its mean in the batch: the plainest weight that looks at all other tokens."""

    name: ClassVar[str] = "over_the_mean"
    scope: ClassVar[Scope] = "batch"

    def weigh(self, rows: Rows, targets: Targets, clock: Clock | None) -> Tensor:
        """Return p / mean p [T]."""
        del targets, clock
        p_T = rows.logp_T.exp()
        return p_T / p_T.mean()


def _loss(objective: LossLike, facts: Callable[[HiddenInputs], Facts]) -> Loss:
    plan = plan_for(objective)

    def loss(inputs: HiddenInputs) -> Tensor:
        head = Head(inputs.weight_VH)
        return hidden_loss(plan, inputs.hidden_NH, head, inputs.labels_N, facts=facts(inputs)).mean()

    return loss


def _in_sequences(inputs: HiddenInputs) -> Facts:
    tokens = inputs.labels_N.shape[0]
    position_N = torch.arange(tokens)
    length = max(tokens // SEQUENCES, 1)
    columns = {"ref_logp": torch.full((tokens,), -1.0)}
    return Facts(position_N // length, position_N % length, columns)


def sequence_scope() -> Loss:
    """One weight for a sequence, with the reference's log p beforehand."""
    return _loss("iw_sft", _in_sequences)


def batch_scope() -> Loss:
    """A weight that looks at the whole batch."""
    return _loss(OverTheMean(), _in_sequences)


def top_k_entropy() -> Loss:
    """The entropy of the 20 most likely tokens."""
    return _loss("eaft", lambda inputs: Facts())


def reference(objective: str, *columns: str, distribution: bool = False) -> Loss:
    """A reference whose hidden states are there: what its head costs, without the pass of its layers."""
    wanted = Wanted(columns, distribution)

    def facts(inputs: HiddenInputs) -> Facts:
        weight_VH = inputs.weight_VH.detach()
        referred = Referred(
            wanted,
            inputs.hidden_NH.detach(),
            weight_VH.shape[0],
            project=lambda hidden_TH: hidden_TH @ weight_VH.t(),
            read=lambda _, transform: nullcontext(Head(weight_VH, transform=transform)),
        )
        return Facts(reference=referred)

    return _loss(objective, facts)
