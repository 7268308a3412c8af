"""LossPlan: what Settings became. Objects, resolved once per run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dft_plugin.errors import ClockError
from dft_plugin.kernels import Kernel
from dft_plugin.objectives import REFERENCE_COLUMNS, Clock, Objective, RowStatistic, Weigher
from dft_plugin.objectives.adjusted import Adjusted
from dft_plugin.objectives.schedule import Schedule

COLUMNS = "columns"
"""The word for a reference that was run beforehand."""


@dataclass(frozen=True)
class TokenRules:
    """What a user said of tokens, in words that a tokenizer turns into ids.

    Attributes:
        always: kinds of tokens, or ids, that get weight 1 whatever the objective says.
        column: a column of factors in the data, or None.
        factors: factors by id, or by the text of one token.
    """

    always: tuple[str | int, ...] = ()
    column: str | None = None
    factors: Mapping[str | int, float] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """What only a tokenizer can turn into ids."""
        return [word for word in (*self.always, *self.factors) if isinstance(word, str)]


@dataclass(frozen=True)
class LossPlan:
    """What is computed, and how.

    Attributes:
        objective: gives each target token its weight, in the end.
        kernel: scores hidden states behind a head that can be read.
        path: `auto` (lean where the head allows it), `lean` (or refuse) or `logits`.
        scratch_bytes: bound on the logits that exist at one time on the lean path; None: what suits the kernel.
        needs: costly statistics that the host wants, beside those of the objective.
        schedule: what changes during the run; None: nothing does.
        rules: what is said of tokens; their words are still to be turned into ids where `adjusted` is None.
        adjusted: these rules as ids, around the objective; None where there are none.
        reference: which frozen reference: `base`, `start`, `copy`, `columns` (of the data), a path; None: nobody said.
    """

    objective: Objective
    kernel: Kernel
    path: str
    scratch_bytes: int | None
    needs: frozenset[RowStatistic] = frozenset()
    schedule: Schedule | None = None
    rules: TokenRules = TokenRules()
    adjusted: Adjusted | None = None
    reference: str | None = None

    def weigher(self, clock: Clock | None) -> Weigher:
        """Return what gives the weights now.

        Args:
            clock: how far the run is; None where nobody knows.

        Raises:
            ClockError: the plan changes during the run, and nobody knows how far it is.
        """
        objective = self.objective
        if self.schedule is not None:
            if clock is None:
                raise ClockError(
                    f"loss: {objective.name} changes during the run, and nobody says how far it is. In a loop of your "
                    "own give `clock=Clock(step, last_step, epoch)`; in a trainer use activate(trainer)."
                )
            objective = self.schedule.at(clock)
        return objective if self.adjusted is None else replace(self.adjusted, inner=objective)

    @property
    def every(self) -> list[Weigher]:
        """All that give weights at some time of the run."""
        found = [self.objective]
        if self.schedule is not None and self.schedule.first is not None:
            found.insert(0, self.schedule.first)
        return [one if self.adjusted is None else replace(self.adjusted, inner=one) for one in found]

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of per-token values that are logged, at any time of the run."""
        return tuple(dict.fromkeys(name for one in self.every for name in one.statistics))

    @property
    def columns(self) -> frozenset[str]:
        """Per-token columns that the data must hold, since they are read at some time of the run."""
        return frozenset().union(*(one.columns for one in self.every)) - self.filled

    @property
    def filled(self) -> frozenset[str]:
        """Columns that a reference fills in during the run."""
        read = frozenset().union(*(one.columns for one in self.every))
        return frozenset() if self.reference == COLUMNS else read & frozenset(REFERENCE_COLUMNS)

    @property
    def refers(self) -> bool:
        """Whether a frozen reference is read at some time of the run, which does not come with the data."""
        return bool(self.filled) or any(one.reference == "distribution" for one in self.every)
