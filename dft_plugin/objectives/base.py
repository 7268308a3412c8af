"""What an objective is: a detached weight for each target token.

The loss of a token is `-w * log p`, with p the probability that the model gives to the target.
Since w is detached, the gradient on the logits is `w * (softmax - onehot)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BeforeValidator, ConfigDict

from dft_plugin.objectives.options import Options
from dft_plugin.objectives.rows import Rows, RowStatistic
from dft_plugin.objectives.targets import Clock, Targets

if TYPE_CHECKING:
    from torch import Tensor

Scope = Literal["token", "sequence", "batch"]
"""What a weight may look at: its own token; all tokens of its sequence; all tokens of the optimizer step."""

Divisor = Literal["tokens", "weights", "kept"]
"""What the sum of a step is divided by: its target tokens; the sum of their weights; those of a weight above 0."""

ReferenceNeed = Literal["none", "columns", "distribution"]
"""What is read of a frozen reference: nothing; the numbers of each token in `REFERENCE_COLUMNS`; its logits."""


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not a truth value")
    return value


Number = Annotated[float, BeforeValidator(_refuse_bool)]
"""A float option. Accepts `1e-2`, which YAML 1.1 reads as a string, and refuses `true`."""


@dataclass(frozen=True)
class Weighed:
    """What an objective makes of T tokens, where that is more than a weight.

    Attributes:
        weight_T: w, finite and detached: the gradient on the logits is `w * (softmax - onehot)`.
        value_T: the loss of each token, where it is not `-w * log p`; None: it is.
        statistics: what is to be logged beside it, by the names in `Objective.statistics`; [T], NaN for a token that
            has no such value.
        soft_T: c, detached, of an objective that reads a reference's distribution: `c * (softmax - Q)` is added to
            the gradient on the logits, with Q as `Objective.soft_targets` says; None: nothing is.
    """

    weight_T: Tensor
    value_T: Tensor | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    soft_T: Tensor | None = None


class Weigher(Protocol):
    """What a kernel asks of an objective, or of one that was changed (`adjusted.py`)."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def needs(self) -> frozenset[RowStatistic]:
        """As `Objective.needs`; so are the others."""
        ...

    @property
    def columns(self) -> frozenset[str]: ...  # noqa: D102 - as `needs`

    @property
    def places(self) -> bool: ...  # noqa: D102 - as `needs`

    @property
    def scope(self) -> Scope: ...  # noqa: D102 - as `needs`

    @property
    def divisor(self) -> Divisor: ...  # noqa: D102 - as `needs`

    @property
    def statistics(self) -> tuple[str, ...]: ...  # noqa: D102 - as `needs`

    @property
    def reference(self) -> ReferenceNeed: ...  # noqa: D102 - as `needs`

    @property
    def replaces_target(self) -> bool: ...  # noqa: D102 - as `needs`

    def soft_targets(self, reference_CV: Tensor, ids_C: Tensor) -> Tensor:
        """As `Objective.soft_targets`."""
        ...

    def weigh(self, rows: Rows, targets: Targets, clock: Clock | None) -> Tensor | Weighed:
        """As `Objective.weigh`."""
        ...


class Objective(Options):
    """Base of all objectives. Fields are the options that a user may set beside `name`.

    Subclass it, give it `name`, `summary`, `source` and `weight`, and return the class from a
    `register_objectives` hook. `dft_plugin.testing.check_objective` checks it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    """What a user writes after `loss:`."""

    summary: ClassVar[str]
    """One line for `dft losses`, with the formula of w."""

    source: ClassVar[str]
    """Where the formula was seen: arXiv id and equation."""

    helps: ClassVar[str] = ""
    """When it helps, in one line; empty where nothing is known."""

    needs: ClassVar[frozenset[RowStatistic]] = frozenset()
    """Which costly statistics of a row `weigh` reads."""

    columns: ClassVar[frozenset[str]] = frozenset()
    """Which per-token columns of the data it reads."""

    places: ClassVar[bool] = False
    """Whether it reads `position_T` or `sequence_T` of the targets; always so where `scope` is not `token`."""

    scope: ClassVar[Scope] = "token"
    """What a weight looks at."""

    divisor: ClassVar[Divisor] = "tokens"
    """What the sum of an optimizer step is divided by."""

    may_be_negative: ClassVar[bool] = False
    """Whether a weight may be below 0: such a token is unlearned. `check_objective` refuses it otherwise."""

    statistics: ClassVar[tuple[str, ...]] = ()
    """Names of per-token values that `weigh` returns to be logged, as means, under `dft/NAME`."""

    reference: ClassVar[ReferenceNeed] = "none"
    """What it reads of a frozen reference; with `distribution` its scope is `token`, see `soft_targets`."""

    replaces_target: ClassVar[bool] = False
    """Whether its soft targets stand in the place of the target: then the weight of a token, in the log and in the
    divisor, is w + c, since c is what its loss is multiplied by. Otherwise it is held to them besides, and it is w."""

    def weight(self, rows: Rows) -> Tensor:
        """Compute w_T from the statistics of the rows: the simple form, enough for most.

        Args:
            rows: statistics of T scored positions, detached.

        Returns:
            w_T, of the dtype of `rows.logp_T`, finite and detached.
        """
        raise NotImplementedError

    def weigh(self, rows: Rows, targets: Targets, clock: Clock | None) -> Tensor | Weighed:
        """Compute w_T from all that is known: the form for what `weight` cannot say.

        Args:
            rows: statistics of T scored positions, detached; of a whole sequence, or batch, where `scope` says so.
            targets: the same T tokens.
            clock: how far the run is; None where nobody knows.

        Returns:
            w_T as `weight` returns it, or that and the loss of each token.
        """
        return self.weight(rows)

    def soft_targets(self, reference_CV: Tensor, ids_C: Tensor) -> Tensor:
        """Make the logits of Q of those of the reference: asked only where `reference` is `distribution`.

        Args:
            reference_CV: the reference's transformed logits of a few tokens, float32 (float64 for float64 inputs);
                they may be changed in place.
            ids_C: int64, the targets.

        Returns:
            [C, V], of which the softmax is Q. Here: the reference's own distribution.
        """
        del ids_C
        return reference_CV
