"""Weights of an objective changed by token id and by the data: tokens that are always learned, factors, a column.

Shapes: T scored tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dft_plugin.objectives.base import Divisor, ReferenceNeed, Scope, Weighed, Weigher
from dft_plugin.objectives.rows import Rows, RowStatistic
from dft_plugin.objectives.targets import Clock, Targets

if TYPE_CHECKING:
    from torch import Tensor

EXEMPT_SHARE, EXEMPT_PROB, DATA_WEIGHT = "always_learn_share", "always_learn_prob", "data_weight"
"""What the log says of it, with `dft/` in front: share and mean probability of the exempt tokens; the mean factor."""


@dataclass(frozen=True)
class Adjusted:
    """A `Weigher` around an objective.

    Attributes:
        inner: gives the weights that are changed.
        always: ids of tokens that get weight 1, whatever the objective says: what DFT would never teach.
        column: name of a column of factors, or None.
        factors: factors by token id.
    """

    inner: Weigher
    always: tuple[int, ...] = ()
    column: str | None = None
    factors: Mapping[int, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """That of the objective."""
        return self.inner.name

    @property
    def needs(self) -> frozenset[RowStatistic]:
        """Those of the objective."""
        return self.inner.needs

    @property
    def columns(self) -> frozenset[str]:
        """Those of the objective, and the column of factors."""
        return self.inner.columns | ({self.column} if self.column else set())

    @property
    def places(self) -> bool:
        """That of the objective."""
        return self.inner.places

    @property
    def scope(self) -> Scope:
        """That of the objective."""
        return self.inner.scope

    @property
    def divisor(self) -> Divisor:
        """That of the objective."""
        return self.inner.divisor

    @property
    def reference(self) -> ReferenceNeed:
        """That of the objective."""
        return self.inner.reference

    @property
    def replaces_target(self) -> bool:
        """That of the objective."""
        return self.inner.replaces_target

    def soft_targets(self, reference_CV: Tensor, ids_C: Tensor) -> Tensor:
        """Make them as the objective does."""
        return self.inner.soft_targets(reference_CV, ids_C)

    @property
    def statistics(self) -> tuple[str, ...]:
        """Those of the objective, and those of what is changed."""
        exempt = (EXEMPT_SHARE, EXEMPT_PROB) if self.always else ()
        return (*self.inner.statistics, *exempt, *((DATA_WEIGHT,) if self.column or self.factors else ()))

    def weigh(self, rows: Rows, targets: Targets, clock: Clock | None) -> Weighed:
        """Weigh as the objective does; then exempt, then multiply."""
        made = self.inner.weigh(rows, targets, clock)
        made = made if isinstance(made, Weighed) else Weighed(made)
        if self.always:
            made = self._exempt(made, rows, targets)
        if self.column or self.factors:
            made = self._multiply(made, self._factor(rows, targets))
        return made

    def _exempt(self, made: Weighed, rows: Rows, targets: Targets) -> Weighed:
        exempt_T = _among(targets.ids_T, self.always)
        one_T = rows.logp_T.new_ones(())
        value_T = made.value_T if made.value_T is None else made.value_T.where(~exempt_T, -rows.logp_T)
        said = {
            EXEMPT_SHARE: exempt_T.to(rows.logp_T.dtype),
            EXEMPT_PROB: rows.logp_T.exp().where(exempt_T, rows.logp_T.new_full((), float("nan"))),
        }
        soft_T = made.soft_T if made.soft_T is None else made.soft_T.where(~exempt_T, 0 * one_T)
        return Weighed(made.weight_T.where(~exempt_T, one_T), value_T, {**made.statistics, **said}, soft_T)

    def _factor(self, rows: Rows, targets: Targets) -> Tensor:
        factor_T = rows.logp_T.new_ones(rows.logp_T.shape)
        if self.column:
            factor_T = targets.columns[self.column].to(factor_T)
        for token_id, factor in self.factors.items():
            factor_T = factor_T.where(targets.ids_T != token_id, factor * factor_T)
        return factor_T

    def _multiply(self, made: Weighed, factor_T: Tensor) -> Weighed:
        value_T = None if made.value_T is None else made.value_T * factor_T
        soft_T = None if made.soft_T is None else made.soft_T * factor_T
        return Weighed(made.weight_T * factor_T, value_T, {**made.statistics, DATA_WEIGHT: factor_T}, soft_T)


def _among(ids_T: Tensor, wanted: tuple[int, ...]) -> Tensor:
    """Compare with numbers: a tensor of the ids would have to be copied to the device, which waits for it."""
    found_T = ids_T != ids_T
    for first, last in _runs(wanted):
        found_T = found_T | ((ids_T >= first) & (ids_T <= last))
    return found_T


def _runs(ids: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the first and last id of each run of neighbours: added tokens are mostly one run."""
    runs: list[tuple[int, int]] = []
    for token_id in sorted(set(ids)):
        if runs and token_id == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], token_id
        else:
            runs.append((token_id, token_id))
    return runs
