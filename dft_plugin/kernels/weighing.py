"""When a kernel asks for weights: with each chunk, or once all rows are known.

Shapes: T scored tokens, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dft_plugin.kernels.gradients import Gradients
from dft_plugin.kernels.results import weigh
from dft_plugin.kernels.terms import is_soft
from dft_plugin.kernels.types import KernelResult
from dft_plugin.objectives import Clock, Divisor, ReferenceNeed, Rows, RowStatistic, Scope, Targets, Weigher

Run = Callable[[Callable[[slice], Weigher], tuple[bool, ...]], tuple[KernelResult, Gradients]]
"""Goes over all chunks: `run(weigher of a chunk, which inputs want a gradient)`."""


@dataclass(frozen=True)
class Fixed:
    """A `Weigher` of weights that are known.

    Attributes:
        weight_C: the weights of a chunk; None: ones.
    """

    weight_C: Tensor | None = None

    name: ClassVar[str] = "fixed"
    needs: ClassVar[frozenset[RowStatistic]] = frozenset()
    columns: ClassVar[frozenset[str]] = frozenset()
    places: ClassVar[bool] = False
    scope: ClassVar[Scope] = "token"
    divisor: ClassVar[Divisor] = "tokens"
    statistics: ClassVar[tuple[str, ...]] = ()
    reference: ClassVar[ReferenceNeed] = "none"
    replaces_target: ClassVar[bool] = False

    def weigh(self, rows: Rows, targets: Targets, clock: Clock | None) -> Tensor:
        """Return them."""
        del targets, clock
        return rows.logp_T.new_ones(rows.logp_T.shape) if self.weight_C is None else self.weight_C

    def soft_targets(self, reference_CV: Tensor, ids_C: Tensor) -> Tensor:
        """Return what was given: nobody asks."""
        del ids_C
        return reference_CV


def by_scope(
    run: Run, objective: Weigher, targets: Targets, wanted: tuple[bool, ...], *, twice: bool
) -> tuple[KernelResult, Gradients]:
    """Score all chunks with the weights of an objective, whatever its weights look at.

    A weight that looks at other tokens is known at the end. A token's own gradient is multiplied by it then; what is
    summed over tokens (the gradient of a trained head) takes a second sweep over all chunks.

    Args:
        run: goes over all chunks.
        objective: gives the weights.
        targets: all T of them.
        wanted: which inputs want a gradient.
        twice: whether something is wanted that is summed over tokens.
    """
    if is_soft(objective) or objective.scope == "token":
        return run(lambda chunk: objective, wanted)
    first, grads = run(lambda chunk: Fixed(), tuple(want and not twice for want in wanted))
    result = weigh(objective, first.rows, targets)
    if twice:
        _, grads = run(lambda chunk: Fixed(result.weight_T[chunk]), wanted)
    else:
        grads.factor_T1.mul_(result.weight_T[:, None])
    return result, grads
