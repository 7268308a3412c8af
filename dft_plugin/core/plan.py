"""LossPlan: what Settings became. Objects, resolved once per run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from dft_plugin.errors import ClockError, ConflictError
from dft_plugin.kernels import Kernel
from dft_plugin.objectives import REFERENCE_COLUMNS, Clock, Objective, RowStatistic, Weigher
from dft_plugin.objectives.adjusted import Adjusted
from dft_plugin.objectives.schedule import Schedule, call

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

    def __bool__(self) -> bool:
        """Whether anything was said."""
        return bool(self.always or self.column or self.factors)

    @property
    def words(self) -> list[str]:
        """What only a tokenizer can turn into ids."""
        return [word for word in (*self.always, *self.factors) if isinstance(word, str)]

    @property
    def ids(self) -> list[int]:
        """Those among `always`."""
        return [number for number in self.always if isinstance(number, int)]

    @property
    def factors_by_id(self) -> dict[int, float]:
        """Those among `factors`."""
        return {key: factor for key, factor in self.factors.items() if isinstance(key, int)}


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
        extra: statistics of rows that are logged besides: `top1`, `entropy`.
        resume: `same`, or `allow` where a checkpoint of another loss may be gone on from.
        nonfinite: what becomes of a training step whose loss is not a finite number: `warn`, `error` or `skip`.
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
    extra: tuple[str, ...] = ()
    resume: str = "same"
    nonfinite: str = "warn"

    def with_ids(self, always: Collection[int], factors: Mapping[int, float]) -> LossPlan:
        """Return the plan whose rules take effect, given what their words and ids come to.

        Args:
            always: ids of tokens that get weight 1.
            factors: factors by id.
        """
        if not self.rules:
            return self
        return replace(
            self, adjusted=Adjusted(self.objective, tuple(sorted(always)), self.rules.column, dict(factors))
        )

    def weigher(self, clock: Clock | None) -> Weigher:
        """Return what gives the weights now.

        Args:
            clock: how far the run is; None where nobody knows.

        Raises:
            ClockError: the plan changes during the run, and nobody knows how far it is.
            ConflictError: the rules were never turned into ids.
        """
        if self.rules and self.adjusted is None:
            raise ConflictError(
                [
                    f"what `loss:` says of tokens ({', '.join(map(str, self.rules.words))}) was not turned into ids, "
                    "so that it would not take effect. Use activate(trainer), or attach(model, loss, "
                    "tokenizer=tokenizer), or write ids."
                ]
            )
        objective = self.holding(clock)
        return objective if self.adjusted is None else replace(self.adjusted, inner=objective)

    def holding(self, clock: Clock | None) -> Objective:
        """Return the objective that holds now, each option a number.

        Args:
            clock: how far the run is; None where nobody knows.

        Raises:
            ClockError: the plan changes during the run, and nobody knows how far it is.
            ConflictError: something of it would never hold in this run.
        """
        objective = self.objective
        if clock is not None and not isinstance(clock, Clock):
            raise ClockError(f"the clock is {clock!r}; a dft_plugin.Clock(step, last_step, epoch) is needed.")
        if self.schedule is not None:
            if clock is None:
                raise ClockError(
                    f"loss: {objective.name} changes during the run, and nobody says how far it is. In a trainer use "
                    "activate(trainer). In a loop of your own set `attachment.clock = dft_plugin.Clock(step, "
                    "last_step, epoch)` before each step, or give the functions `facts=dft_plugin.Facts(clock=...)`."
                )
            if clock.last_step is not None and (never := self.schedule.never_reached(clock.last_step)):
                raise ConflictError(never)
            objective = self.schedule.at(clock)
        return objective

    def logs(self, clock: Clock | None) -> dict[str, float]:
        """Return what the log says of what changes during the run: `dft/OPTION`, as it stands."""
        return {} if self.schedule is None or clock is None else self.schedule.logs(clock)

    def describe(self) -> str:
        """Return `dft(alpha=1.0, floor=0.0)`, and what of it changes when; for logs. What is more: `besides`."""
        return call(self.objective) if self.schedule is None else str(self.schedule)

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
        own = (name for one in self.every for name in one.statistics)
        return tuple(dict.fromkeys((*own, *self.extra)))

    @property
    def wanted(self) -> frozenset[RowStatistic]:
        """Costly statistics of rows that somebody wants besides the objective: the host, or the log."""
        return self.needs | ({"entropy"} if "entropy" in self.extra else frozenset())

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
