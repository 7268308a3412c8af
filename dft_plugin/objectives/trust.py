"""Objectives that weigh a token by how far the model trusts it already: by p, by the entropy, by both.

p is the probability of the target, H the entropy of its row in nats, sg the stop-gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from dft_plugin.objectives.base import Divisor, Number, Objective, Weighed
from dft_plugin.objectives.options import MOST
from dft_plugin.objectives.rows import Rows, RowStatistic, Top
from dft_plugin.objectives.targets import Clock, Targets

if TYPE_CHECKING:
    from torch import Tensor

_DEFT_EPSILON = 1e-6
"""Beside the exponent in DEFT's divisor, as in its released code."""

_LEAST = 1e-37
"""A weight that is as good as 0, and says that the token was kept."""

EAFT_TOP = Top(20)
"""The tokens that the entropy of EAFT looks at."""


class EAFT(Objective):
    """Entropy-adaptive fine-tuning, arXiv 2601.02151: w = sg(H_20 / normalizer) ** alpha.

    H_20 is the entropy of the 20 most likely tokens, made to sum to 1. A confident model that is contradicted
    (p and H both small) learns little from the token; one that does not know learns as in SFT.
    """

    name: ClassVar[str] = "eaft"
    summary: ClassVar[str] = "w = (H_top20 / normalizer) ** alpha: Entropy-Adaptive Fine-Tuning"
    source: ClassVar[str] = "arXiv 2601.02151"
    helps: ClassVar[str] = "data that contradicts what the model is sure of, where general ability must be kept"
    needs: ClassVar[frozenset[RowStatistic]] = frozenset({EAFT_TOP})
    without_effect: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {"normalizer": ("alpha", (0,))}

    alpha: Number = Field(default=1.0, ge=0, le=MOST, description="Exponent of the entropy: 0 is plain SFT.")
    normalizer: Number = Field(
        default=math.log(20),
        ge=0.01,
        le=MOST,
        description=(
            "What the entropy, in nats, is divided by: ln 20, its largest value, as the paper does; 3 is "
            "LLaMA-Factory's, 1 is Axolotl's, whose weights reach 3."
        ),
    )

    def weight(self, rows: Rows) -> Tensor:
        """Return (H_20 / normalizer) ** alpha [T]."""
        logp_TK = rows.added[EAFT_TOP.name].log_softmax(-1)
        terms_TK = logp_TK.exp() * logp_TK
        # 0 * -inf, of a token that the model has masked out, is 0.
        entropy_T = -terms_TK.where(logp_TK.isfinite(), terms_TK.new_zeros(())).sum(-1)
        return (entropy_T.clamp(min=0) / self.normalizer) ** self.alpha


class IDFT(Objective):
    """In-distribution fine-tuning, arXiv 2602.12222: w = sg(p ** g) with an exponent of the token's own.

    g = 1 + strength * (clamp(exp(-(log p + H) / beta), 0.1, 2) - 1). log p + H compares how surprising the target is
    with how surprising a token of the model's own would be: g is below 1 (nearer to SFT) for what is likelier than
    that. The released code differentiates p ** g, too; here it is a constant, as in the paper.
    """

    name: ClassVar[str] = "idft"
    summary: ClassVar[str] = "w = p ** g, g = 1 + strength * (clamp(exp(-(log p + H) / beta), 0.1, 2) - 1)"
    source: ClassVar[str] = "arXiv 2602.12222; github.com/zhangmiaosen2000/Towards-On-Policy-SFT, its released code"
    helps: ClassVar[str] = "as dft, with less taken from tokens that are as likely as the model's own"
    needs: ClassVar[frozenset[RowStatistic]] = frozenset({"entropy"})
    without_effect: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {"beta": ("strength", (0,))}

    strength: Number = Field(
        default=1.0, ge=0, le=1, description="Lambda, how far g may leave 1: 0 is plain DFT. The paper ramps it up."
    )
    beta: Number = Field(default=1.0, gt=0, le=MOST, description="Temperature of g, in nats.")

    def weight(self, rows: Rows) -> Tensor:
        """Return p ** g [T]."""
        assert rows.entropy_T is not None
        ratio_T = (-(rows.logp_T + rows.entropy_T) / self.beta).exp().clamp(0.1, 2.0)
        exponent_T = 1 + self.strength * (ratio_T - 1)
        return (exponent_T * rows.logp_T).exp()


class DEFT(Objective):
    """Distribution-entropy fine-tuning, arXiv 2602.11424: (1 - p ** a) / a with a = sg(sum of p squared over the row).

    Where the model is sure (a near 1) it is DFT, where it does not know (a near 0) it is SFT. The value is reported as
    the paper defines it; its gradient is that of `-w log p` with w = p ** a * a / (a + 1e-6).
    """

    name: ClassVar[str] = "deft"
    summary: ClassVar[str] = "w = p ** a, a = sum of p ** 2 over the vocabulary; reported as (1 - p ** a) / a"
    source: ClassVar[str] = "arXiv 2602.11424; github.com/luludus/DEFT"
    helps: ClassVar[str] = "data of mixed difficulty: DFT where the model is sure, SFT where it is not"
    needs: ClassVar[frozenset[RowStatistic]] = frozenset({"sum_p_squared"})

    def weigh(self, rows: Rows, targets: Targets, clock: Clock | None) -> Weighed:
        """Return p ** a [T], and (1 - p ** a) / a."""
        del targets, clock
        a_T = rows.sum_p_squared_T
        assert a_T is not None
        power_T = a_T * rows.logp_T
        return Weighed(power_T.exp() * a_T / (a_T + _DEFT_EPSILON), -power_T.expm1() / (a_T + _DEFT_EPSILON))


class ProFit(Objective):
    """ProFit, arXiv 2601.09195: SFT of the tokens that the model finds likely; divided by all target tokens."""

    name: ClassVar[str] = "profit"
    summary: ClassVar[str] = "w = 1 where p >= threshold, else 0; divided by all target tokens"
    source: ClassVar[str] = "arXiv 2601.09195; github.com/Utaotao/ProFit"
    helps: ClassVar[str] = "long answers of which the unlikely tokens are mere wording"

    threshold: Number = Field(default=0.1, ge=0, lt=1, description="Tokens of a smaller probability are not learned.")

    def weight(self, rows: Rows) -> Tensor:
        """Return 1 or 0 [T]."""
        return (rows.logp_T.exp() >= self.threshold).to(rows.logp_T.dtype)


class Thresholded(Objective):
    """Likelihood, or probability, of the tokens on one side of a threshold, divided by those that are kept.

    The thresholded losses of arXiv 2510.00526.
    """

    name: ClassVar[str] = "thresholded"
    summary: ClassVar[str] = "w = 1 (or p) where p is above (or below) the threshold; divided by the tokens kept"
    source: ClassVar[str] = "arXiv 2510.00526; github.com/GaotangLi/Beyond-Log-Likelihood, fsdp_sft_trainer.py"
    helps: ClassVar[str] = "finding out which tokens a gain comes from"
    divisor: ClassVar[Divisor] = "kept"

    threshold: Number = Field(default=0.2, ge=0, le=1, description="The probability that divides the tokens.")
    keep: Literal["above", "below"] = Field(
        default="above", description="Which are learned; those at the threshold are on both sides."
    )
    of: Literal["nll", "p"] = Field(default="nll", description="Their loss: -log p, or 1 - p (as DFT learns).")

    @model_validator(mode="after")
    def _keep_some(self) -> Thresholded:
        if self.threshold == (1.0 if self.keep == "above" else 0.0):
            raise ValueError(
                f"no token's probability is {self.keep} {self.threshold:g}, so nothing would be trained. Give a "
                "threshold between 0 and 1"
            )
        return self

    def weigh(self, rows: Rows, targets: Targets, clock: Clock | None) -> Weighed:
        """Return 1 or p for those that are kept [T]."""
        del targets, clock
        p_T = rows.logp_T.exp()
        kept_T = p_T >= self.threshold if self.keep == "above" else p_T <= self.threshold
        kept_T = kept_T.to(p_T.dtype)
        if self.of == "nll":
            return Weighed(kept_T)
        # 0 would say that it was not kept.
        return Weighed(kept_T * p_T.clamp(min=_LEAST), kept_T * rows.one_minus_p_T)


class ChordPhi(Objective):
    """The token weight of CHORD, arXiv 2508.11408: w = sg(p * (1 - p)), largest for what is half known."""

    name: ClassVar[str] = "chord_phi"
    summary: ClassVar[str] = "w = p * (1 - p)"
    source: ClassVar[str] = "arXiv 2508.11408; ms-swift, rlhf_trainers/utils.py"
    helps: ClassVar[str] = "SFT beside reinforcement learning: what is known or hopeless is left alone"

    def weight(self, rows: Rows) -> Tensor:
        """Return p * (1 - p) [T]."""
        return rows.logp_T.exp() * rows.one_minus_p_T


class Focal(Objective):
    """Focal loss, arXiv 1708.02002, eq. 4, with the factor held constant: w = sg((1 - p) ** gamma).

    Its authors differentiate the factor, too. The opposite of DFT: it turns to what is not known yet.
    """

    name: ClassVar[str] = "focal"
    summary: ClassVar[str] = "w = (1 - p) ** gamma"
    source: ClassVar[str] = "arXiv 1708.02002, eq. 4, its factor held constant"
    helps: ClassVar[str] = "knowledge that the model lacks: the opposite of dft"

    gamma: Number = Field(default=2.0, ge=0, le=MOST, description="Exponent of 1 - p: 0 is plain SFT.")

    def weight(self, rows: Rows) -> Tensor:
        """Return (1 - p) ** gamma [T]."""
        return rows.one_minus_p_T**self.gamma
