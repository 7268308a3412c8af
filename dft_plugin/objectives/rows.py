"""What is known of the rows of logits of scored tokens.

Shapes: T scored tokens, C tokens of a chunk, V vocabulary, K most likely tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

Named = Literal["entropy", "sum_p_squared"]
"""Statistics that every kernel makes while it sums up a row, at the cost of an extra pass."""


@runtime_checkable
class RowFunction(Protocol):
    """A statistic that an objective adds: made from a chunk of logits before their memory is used again.

    Hashable and equal to another that computes the same, so that it is computed once. A frozen dataclass will do.
    """

    @property
    def name(self) -> str:
        """Under which it stands in `Rows.added`."""
        ...

    def __call__(self, logits_CV: Tensor, targets_C: Tensor) -> Tensor:
        """Compute it, [C] or [C, anything].

        Args:
            logits_CV: transformed logits, float32 (float64 for float64 inputs); not to be changed.
            targets_C: int64 ids.
        """
        ...


@runtime_checkable
class BlockFunction(RowFunction, Protocol):
    """A `RowFunction` that can be made from blocks of the vocabulary, without ever holding a whole row.

    It is then called with a block of columns, and must not look at the targets.
    """

    def combine(self, parts_PC: Tensor) -> Tensor:
        """Make the statistic [C] or [C, anything] of P blocks from those of each, [P, C] or [P, C, anything]."""
        ...


RowStatistic = Named | RowFunction
"""What `Objective.needs` may name."""


@dataclass(frozen=True)
class Top:
    """The largest logits of a row, in falling order, [C, K]; K is V where the vocabulary is smaller.

    They suffice for the entropy of the renormalised top k, and the probability of the likeliest token.
    """

    k: int

    @property
    def name(self) -> str:
        """`top20` for k = 20."""
        return f"top{self.k}"

    def __call__(self, logits_CV: Tensor, targets_C: Tensor) -> Tensor:
        """Return the k largest."""
        del targets_C
        return logits_CV.topk(min(self.k, logits_CV.shape[1])).values

    def combine(self, parts_PC: Tensor) -> Tensor:
        """Return the k largest of the k largest of each block."""
        every_CK = parts_PC.movedim(0, 1).flatten(1)
        return self(every_CK, every_CK)


@dataclass(frozen=True)
class Rank:
    """How many tokens are likelier than the target, int64 [C]: 0 for the likeliest."""

    name: str = "rank"

    def __call__(self, logits_CV: Tensor, targets_C: Tensor) -> Tensor:
        """Count the larger logits."""
        return (logits_CV > logits_CV.gather(1, targets_C[:, None])).sum(1)


@dataclass(frozen=True)
class Rows:
    """Statistics of the T scored positions, detached, float32 (float64 for float64 inputs).

    Attributes:
        logp_T: log-probability of the target, in nats.
        one_minus_p_T: 1 - p without cancellation, for p near 1.
        is_top1_T: whether no token is more likely than the target (bool).
        entropy_T: entropy of the distribution, in nats; None unless needed.
        sum_p_squared_T: sum over the vocabulary of p squared; None unless needed.
        added: what each needed `RowFunction` returned, by its name; [T] or [T, anything].
    """

    logp_T: Tensor
    one_minus_p_T: Tensor
    is_top1_T: Tensor
    entropy_T: Tensor | None = None
    sum_p_squared_T: Tensor | None = None
    added: Mapping[str, Tensor] = field(default_factory=dict)
