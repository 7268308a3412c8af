"""What is known of the scored tokens, beside their logits.

Shapes: T scored tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Protocol

from dft_plugin.errors import ClockError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Clock:
    """How far a run is.

    Attributes:
        step: optimizer steps that are done, 0 at the beginning.
        last_step: how many there will be; None where nobody knows, as before a run.
        epoch: passes over the data that are done, with a fraction.

    Raises:
        ClockError: no run can be there.
    """

    step: int
    last_step: int | None
    epoch: float

    def __post_init__(self) -> None:
        last, wrong = self.last_step, []
        if not _is(self.step, Integral) or self.step < 0:
            wrong.append(f"step is {self.step!r}: optimizer steps that are done are needed, an integer, 0 or more")
        if last is not None and (not _is(last, Integral) or last < 1):
            wrong.append(
                f"last_step is {last!r}: the number of optimizer steps of the run is needed, an integer, 1 or more "
                "(None: nobody knows it)"
            )
        if not wrong and last is not None and self.step > last:
            wrong.append(f"step is {self.step}, and last_step is {last}: the run is over. Give all steps of the run")
        if not _is(self.epoch, Real) or not (math.isfinite(self.epoch) and self.epoch >= 0):
            wrong.append(f"epoch is {self.epoch!r}: passes over the data are needed, a number, 0 or more")
        if wrong:
            raise ClockError(f"Clock(step, last_step, epoch): {'; '.join(wrong)}.")

    @classmethod
    def of_run(cls, step: int, last_step: int | None, epoch: float) -> Clock:
        """Return how far a run of somebody else's is: one that goes on beyond its last step stays at its end.

        Args:
            step: steps that are done, by whoever makes them.
            last_step: as in a clock.
            epoch: as in a clock.
        """
        return cls(step if last_step is None else min(step, last_step), last_step, epoch)

    @property
    def share(self) -> float:
        """How much of the run is done, in [0, 1]; 0 where nobody knows how long it is."""
        return 0.0 if self.last_step is None else self.step / self.last_step


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


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
