"""What a kernel takes and gives. Shapes: T scored tokens, D hidden size, V vocabulary, R LoRA rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dft_plugin.objectives import Rows, RowStatistic, Targets, Weigher


@dataclass(frozen=True)
class Transform:
    """What a model does to the raw logits of its head: `x * scale`, then `c * tanh(x / c)`.

    Attributes:
        scale: factor on the raw logits (Cohere's logit_scale, Granite's 1 / logits_scaling, ...).
        softcap: c, in the units of the scaled logits (Gemma 2's final_logit_softcapping), or None.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Apply it, out of place and differentiably."""
        scaled = logits * self.scale if self.scale != 1.0 else logits
        return scaled if self.softcap is None else (scaled / self.softcap).tanh() * self.softcap


IDENTITY = Transform()
"""Most models leave their logits as the head makes them."""


@dataclass(frozen=True)
class LowRank:
    """A LoRA branch of the head, kept apart from the weight so that no copy of it is made.

    It adds `input_TR @ weight_VR.T` to the raw logits. Several adapters are concatenated along R.
    """

    input_TR: Tensor
    weight_VR: Tensor


@dataclass(frozen=True)
class Head:
    """A head whose weight can be read: logits = transform(hidden @ weight.T + bias + low rank).

    Attributes:
        weight_VD: the whole vocabulary; a local shard must never stand here.
        bias_V: or None.
        transform: what the model does to the raw logits.
        low_rank: LoRA on the head, or None.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    transform: Transform = IDENTITY
    low_rank: LowRank | None = None

    @property
    def vocab_size(self) -> int:
        """Number of logits per position."""
        return self.weight_VD.shape[0]

    @property
    def trained(self) -> bool:
        """Whether any tensor of the head may need a gradient; a LoRA branch counts as one that does."""
        tensors = (self.weight_VD, self.bias_V)
        return self.low_rank is not None or any(t is not None and t.requires_grad for t in tensors)


@dataclass(frozen=True)
class OpaqueHead:
    """A head that can only be called (DoRA, quantised, tensor-parallel ...).

    Attributes:
        project: hidden [T, D] to raw logits [T, V], differentiable.
        vocab_size: number of logits per position.
        transform: what the model does to the raw logits.
        parameters: what `project` uses; those that require grad get one.
        row_multiple: of how many rows `project` wants a multiple (16 for float8), 1 if it takes any number.
    """

    project: Callable[[Tensor], Tensor]
    vocab_size: int
    transform: Transform = IDENTITY
    parameters: tuple[Tensor, ...] = ()
    row_multiple: int = 1


@dataclass(frozen=True)
class KernelResult:
    """What every kernel returns: a sum, never a mean.

    Attributes:
        loss_sum: sum over T of the losses, differentiable; a zero that is connected to the graph if T is 0.
        rows: statistics of the T tokens, detached.
        weight_T: weights of the objective, detached.
        loss_T: `-w * log p` in nats, or what the objective says it is, detached.
        statistics: per-token values of the objective, by name, detached.
        soft_T: strengths of the objective's soft targets, detached; None where it has none.
    """

    loss_sum: Tensor
    rows: Rows
    weight_T: Tensor
    loss_T: Tensor
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    soft_T: Tensor | None = None


class Kernel(Protocol):
    """Scores T hidden states against their targets.

    Differentiable in hidden_TD and, where they require grad, in the tensors of the head.
    """

    __name__: str

    def __call__(
        self,
        hidden_TD: Tensor,
        head: Head,
        targets: Targets,
        objective: Weigher,
        *,
        needs: frozenset[RowStatistic],
        scratch_bytes: int | None,
    ) -> KernelResult:
        """Score. `needs`: costly statistics to return; `scratch_bytes`: bound on the logits held at once, or None."""
        ...


def refuse_second_derivative() -> None:
    """Raise in a backward pass of `create_graph=True`: the gradient is a constant by then, its derivative lost.

    Raises:
        RuntimeError: this pass is to be differentiated again.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "create_graph=True: this loss makes its gradient in the forward pass, so it has no second derivative. Use "
            "`kernel: reference`, or drop create_graph."
        )
