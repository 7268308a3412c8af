"""The two objectives that are shipped: plain likelihood, and Dynamic Fine-Tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dft_plugin.objectives.base import Number, Objective
from dft_plugin.objectives.options import MOST
from dft_plugin.objectives.rows import Rows

if TYPE_CHECKING:
    from torch import Tensor


class NLL(Objective):
    """Negative log-likelihood, the loss of SFT: w = 1."""

    name: ClassVar[str] = "nll"
    summary: ClassVar[str] = "w = 1: plain SFT, with the same kernels and statistics"
    source: ClassVar[str] = "cross-entropy; arXiv 2508.05629, eq. 1"
    helps: ClassVar[str] = "facts and formats that the model does not know yet"

    def weight(self, rows: Rows) -> Tensor:
        """Return ones [T]."""
        return rows.logp_T.new_ones(rows.logp_T.shape)


class DFT(Objective):
    """Dynamic Fine-Tuning: w = sg(p), arXiv 2508.05629, eq. 9.

    `alpha` and `floor` generalise it to w = max(p ** alpha, floor): alpha is the q of generalised cross-entropy (arXiv
    1805.07836), alpha 0 is SFT, and a floor keeps tokens that the model finds impossible (new formats, EOS of a base
    model) learnable.
    """

    name: ClassVar[str] = "dft"
    summary: ClassVar[str] = "w = max(p ** alpha, floor): Dynamic Fine-Tuning"
    source: ClassVar[str] = "arXiv 2508.05629, eq. 9; alpha: arXiv 2510.00526 (general family)"
    helps: ClassVar[str] = "reasoning (maths, code) in which the model has a good prior: dft/mean_prob well above 0.1"
    without_effect: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {
        "floor": ("alpha", (0,)),
        "alpha": ("floor", (1,)),
    }

    alpha: Number = Field(
        default=1.0,
        ge=0,
        le=MOST,
        description=(
            "Exponent of p in the weight: 1 is the paper's DFT, 0 is plain SFT. The q of generalised cross-entropy "
            "(arXiv 1805.07836)."
        ),
    )
    floor: Number = Field(
        default=0.0, ge=0, le=1, description="Smallest weight of a token: 0 is the paper's DFT, 1 is plain SFT."
    )

    def weight(self, rows: Rows) -> Tensor:
        """Return max(p ** alpha, floor) [T]."""
        weight_T = (self.alpha * rows.logp_T).exp() if self.alpha else NLL().weight(rows)
        return weight_T.clamp(min=self.floor)
