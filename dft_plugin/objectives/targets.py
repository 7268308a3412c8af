"""What is known of the scored tokens, beside their logits.

Shapes: T scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Clock:
    """How far a run is.

    Attributes:
        step: optimizer steps that are done, 0 at the beginning.
        last_step: how many there will be.
        epoch: passes over the data that are done, with a fraction.
    """

    step: int
    last_step: int
    epoch: float

    @property
    def share(self) -> float:
        """How much of the run is done, in [0, 1]."""
        return min(1.0, self.step / max(self.last_step, 1))


class Distribution(Protocol):
    """What a frozen reference says of T tokens, made a chunk at a time."""

    def __getitem__(self, chunk: slice) -> Distribution:
        """Return that of some of them."""
        ...

    def held(self) -> Distribution:
        """Return one that holds its logits, to be read in several parts: for a chunk, never for all tokens."""
        ...

    def logits(self) -> Tensor:
        """Make its transformed logits [T, V], float32 or float64, memory of the caller's own."""
        ...


@dataclass(frozen=True)
class Targets:
    """The T tokens that are scored.

    Attributes:
        ids_T: int64 ids in [0, V).
        position_T: int64, its position in its sequence; None where nobody asked.
        sequence_T: int64, which sequence of the batch it is in, 0, 1 ... below T; None where nobody asked.
        columns: per-token numbers by the name of their column, float32 [T]; those that the objective declares.
        clock: how far the run is; None where nobody knows (a loop of one's own that does not say).
        reference: what a frozen reference says of them; None where nobody asked, or there is none.
    """

    ids_T: Tensor
    position_T: Tensor | None = None
    sequence_T: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    clock: Clock | None = None
    reference: Distribution | None = None

    def __len__(self) -> int:
        """T."""
        return self.ids_T.shape[0]

    def __getitem__(self, chunk: slice) -> Targets:
        """Return some of them."""
        return replace(
            self,
            ids_T=self.ids_T[chunk],
            position_T=None if self.position_T is None else self.position_T[chunk],
            sequence_T=None if self.sequence_T is None else self.sequence_T[chunk],
            columns={name: column_T[chunk] for name, column_T in self.columns.items()},
            reference=None if self.reference is None else self.reference[chunk],
        )
