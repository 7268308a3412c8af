"""Objectives that compare the model with another one: a frozen reference, or itself before an update.

They read columns: `ref_logp` (log-probability of the target under the reference, in nats) and `ref_mass` (the
probability that the reference gives to the target and to all that is less likely), which are made during the run or
come with the data; and `old_logp`, of the data.
Shapes: T scored tokens, C tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from dft_plugin.objectives.base import Divisor, Number, Objective, ReferenceNeed, Scope, Weighed
from dft_plugin.objectives.options import MOST
from dft_plugin.objectives.rows import Rows, RowStatistic
from dft_plugin.objectives.targets import Clock, Targets

if TYPE_CHECKING:
    from torch import Tensor

REFERENCE_COLUMNS = ("ref_logp", "ref_mass")
"""The columns that a reference can fill in during the run."""

_SEQUENCE_BOUND = 16.0
"""Largest weight of a sequence, as in the released code of iw-SFT."""

_TOKEN_BOUNDS = (0.2, 1.8)
"""Smallest and largest weight of a token, as there."""


class PriFT(Objective):
    """Prior fine-tuning, arXiv 2606.09396: weights by the probability of a frozen model, so that they do not run away.

    By probability w = p_ref; by mass w = 1 where tokens that the reference finds no likelier than the target hold
    `threshold` of its probability.
    """

    name: ClassVar[str] = "prift"
    summary: ClassVar[str] = "w = p_ref of a frozen reference; by mass: 1 where its tokens up to the target hold half"
    source: ClassVar[str] = "arXiv 2606.09396; github.com/wang-kee/PriFT, prift_weights.py"
    helps: ClassVar[str] = "as dft, in long trainings, where the model's own p would run away"
    reference: ClassVar[ReferenceNeed] = "columns"
    without_effect: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {"threshold": ("by", ("prob",))}

    by: Literal["prob", "mass"] = Field(
        default="prob", description="What is weighed by: the reference's probability of the target, or its mass."
    )
    threshold: Number = Field(default=0.5, ge=0, le=1, description="By mass: what a target needs to be learned.")

    @property
    def columns(self) -> frozenset[str]:  # type: ignore[override]  # an option decides
        """`ref_logp` or `ref_mass`."""
        return frozenset({"ref_logp" if self.by == "prob" else "ref_mass"})

    def weigh(self, rows: Rows, targets: Targets, clock: Clock | None) -> Tensor:
        """Return p_ref, or 1 or 0 [T]."""
        del clock
        if self.by == "prob":
            return targets.columns["ref_logp"].to(rows.logp_T).exp()
        return (targets.columns["ref_mass"] >= self.threshold).to(rows.logp_T)


class IWSFT(Objective):
    """Importance-weighted SFT, arXiv 2507.12856: weights by p / p_ref, of a sequence or of each token."""

    name: ClassVar[str] = "iw_sft"
    summary: ClassVar[str] = "w = clamp(exp(temperature * mean of log p - log p_ref over the sequence), 0, 16)"
    source: ClassVar[str] = "arXiv 2507.12856; github.com/emmyqin/iw_sft, bounding_trainers.py"
    helps: ClassVar[str] = "curated data of which some sequences suit the model better than others"
    reference: ClassVar[ReferenceNeed] = "columns"
    columns: ClassVar[frozenset[str]] = frozenset({"ref_logp"})
    without_effect: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {"temperature": ("per", ("token",))}

    per: Literal["sequence", "token"] = Field(
        default="sequence", description="What gets one weight. `token`: clamp(p / p_ref, 0.2, 1.8)."
    )
    temperature: Number = Field(default=1.0, ge=0, le=MOST, description="Factor on the mean log-ratio of a sequence.")

    @property
    def scope(self) -> Scope:  # type: ignore[override]  # an option decides
        """A sequence or a token."""
        return self.per

    def weigh(self, rows: Rows, targets: Targets, clock: Clock | None) -> Tensor:
        """Return the importance of each token, or of its sequence [T]."""
        del clock
        ratio_T = rows.logp_T - targets.columns["ref_logp"].to(rows.logp_T)
        if self.per == "token":
            return ratio_T.exp().clamp(*_TOKEN_BOUNDS)
        mean_T = mean_of_sequences(ratio_T, targets)
        return (self.temperature * mean_T).exp().clamp(max=_SEQUENCE_BOUND)


class PSFT(Objective):
    """Proximal SFT, arXiv 2508.17784: -min(r, clip(r, 1 - low, 1 + high)) with r = p / p_old, PPO of advantage 1.

    p_old are the probabilities before each batch of updates. With a positive advantage only the upper bound binds: the
    gradient is that of `-r` below 1 + high, and none above.
    """

    name: ClassVar[str] = "psft"
    summary: ClassVar[str] = "w = r where r = p / p_old <= 1 + high, else 0; reported as -min(r, 1 + high)"
    source: ClassVar[str] = "arXiv 2508.17784; github.com/zwhong714/PSFT, ray_trainer.py"
    helps: ClassVar[str] = "several epochs without losing what the model could do"
    columns: ClassVar[frozenset[str]] = frozenset({"old_logp"})

    high: Number = Field(default=0.28, ge=0, le=MOST, description="How far p may rise above p_old.")

    def weigh(self, rows: Rows, targets: Targets, clock: Clock | None) -> Weighed:
        """Return r or 0 [T], and -min(r, 1 + high)."""
        del clock
        ratio_T = (rows.logp_T - targets.columns["old_logp"].to(rows.logp_T)).exp()
        bound = 1 + self.high
        return Weighed(ratio_T.where(ratio_T <= bound, ratio_T.new_zeros(())), -ratio_T.clamp(max=bound))


def mean_of_sequences(value_T: Tensor, targets: Targets) -> Tensor:
    """Return for each token the mean of a value over the scored tokens of its sequence, [T].

    Args:
        value_T: any float dtype.
        targets: the same tokens; their `sequence_T` must be known.
    """
    sequence_T = targets.sequence_T
    assert sequence_T is not None
    # No more sequences than tokens: sizes that depend on the data would wait for the device.
    sum_T = value_T.new_zeros(len(value_T) + 1).index_add_(0, sequence_T, value_T)
    count_T = value_T.new_zeros(len(value_T) + 1).index_add_(0, sequence_T, value_T.new_ones(len(value_T)))
    return sum_T[sequence_T] / count_T[sequence_T]


@dataclass(frozen=True)
class Mass:
    """The probability of the target and of all that is less likely, [C]: as PriFT defines it, without what ties."""

    name: str = "mass"

    def __call__(self, logits_CV: Tensor, targets_C: Tensor) -> Tensor:
        """Sum them up."""
        q_CV, target_C1 = logits_CV.softmax(-1), targets_C[:, None]
        own_C = q_CV.gather(1, target_C1)[:, 0]
        return q_CV.masked_fill_(logits_CV >= logits_CV.gather(1, target_C1), 0).sum(1) + own_C


@dataclass(frozen=True)
class ReferenceColumns:
    """A `Weigher` that makes the columns of a reference of its logits, as statistics.

    Attributes:
        statistics: which; of `REFERENCE_COLUMNS`.
    """

    statistics: tuple[str, ...]

    name: ClassVar[str] = "reference"
    columns: ClassVar[frozenset[str]] = frozenset()
    places: ClassVar[bool] = False
    scope: ClassVar[Scope] = "token"
    divisor: ClassVar[Divisor] = "tokens"
    reference: ClassVar[ReferenceNeed] = "none"
    replaces_target: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[RowStatistic]:
        """The mass, where it is asked for."""
        return frozenset({Mass()} if "ref_mass" in self.statistics else ())

    def weigh(self, rows: Rows, targets: Targets, clock: Clock | None) -> Weighed:
        """Weigh nothing; return the columns."""
        del targets, clock
        made = {"ref_logp": rows.logp_T}
        if "ref_mass" in self.statistics:
            made["ref_mass"] = rows.added[Mass().name]
        return Weighed(rows.logp_T.new_zeros(rows.logp_T.shape), statistics=made)

    def soft_targets(self, reference_CV: Tensor, ids_C: Tensor) -> Tensor:
        """Return what was given: nobody asks."""
        del ids_C
        return reference_CV
