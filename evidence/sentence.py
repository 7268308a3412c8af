"""What the paper compared DFT's weights with: one weight for a whole answer (arXiv 2508.05629, table 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from dft_plugin.objectives.base import Objective, Scope
from dft_plugin.objectives.reference import mean_of_sequences

if TYPE_CHECKING:
    from torch import Tensor

    from dft_plugin.objectives.rows import Rows
    from dft_plugin.objectives.targets import Clock, Targets


class Sentence(Objective):
    """Every token of an answer is weighed by the probability of the answer, or by its geometric mean over tokens."""

    name: ClassVar[str] = "sentence"
    summary: ClassVar[str] = "w = product of p over the answer, or its geometric mean"
    source: ClassVar[str] = "arXiv 2508.05629, table 5"
    scope: ClassVar[Scope] = "sequence"

    mean: Literal["none", "geometric"] = "none"

    def weigh(self, rows: Rows, targets: Targets, clock: Clock | None) -> Tensor:
        """Return the weight of each token's answer [T]."""
        del clock
        mean_T = mean_of_sequences(rows.logp_T, targets)
        if self.mean == "geometric":
            return mean_T.exp()
        count_T = (targets.sequence_T[:, None] == targets.sequence_T[None, :]).sum(1)
        return (mean_T * count_T).exp()
