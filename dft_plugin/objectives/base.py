"""What an objective is: a detached weight for each target token.

The loss of a token is `-w * log p`, with p the probability that the model gives to the target.
Since w is detached, the gradient on the logits is `w * (softmax - onehot)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor

RowStatistic = Literal["entropy", "sum_p_squared"]
"""Statistics of a row of logits that cost an extra pass, computed only where asked for."""


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not a truth value")
    return value


Number = Annotated[float, BeforeValidator(_refuse_bool)]
"""A float option. Accepts `1e-2`, which YAML 1.1 reads as a string, and refuses `true`."""


@dataclass(frozen=True)
class Rows:
    """Statistics of the T scored positions, detached, float32 (float64 for float64 inputs).

    Attributes:
        logp_T: log-probability of the target, in nats.
        one_minus_p_T: 1 - p without cancellation, for p near 1.
        is_top1_T: whether no token is more likely than the target (bool).
        entropy_T: entropy of the distribution, in nats; None unless needed.
        sum_p_squared_T: sum over the vocabulary of p squared; None unless needed.
    """

    logp_T: Tensor
    one_minus_p_T: Tensor
    is_top1_T: Tensor
    entropy_T: Tensor | None = None
    sum_p_squared_T: Tensor | None = None


class Objective(BaseModel):
    """Base of all objectives. Fields are the options that a user may set beside `name`.

    Subclass it, give it `name`, `summary`, `source` and `weight`, and return the class from a
    `register_objectives` hook. See docs/objectives.md.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    """What a user writes after `loss:`."""

    summary: ClassVar[str]
    """One line for `dft losses`, with the formula of w."""

    source: ClassVar[str]
    """Where the formula was seen: arXiv id and equation."""

    needs: ClassVar[frozenset[RowStatistic]] = frozenset()
    """Which costly fields of `Rows` `weight` reads."""

    def weight(self, rows: Rows) -> Tensor:
        """Compute w_T from the statistics of the rows.

        Args:
            rows: statistics of T scored positions, detached.

        Returns:
            w_T, of the dtype of `rows.logp_T`, finite and detached.
        """
        raise NotImplementedError
