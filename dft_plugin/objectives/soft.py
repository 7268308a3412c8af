"""Objectives that pull the model's whole distribution towards one that is made of a frozen reference's.

p is the model's distribution, r the reference's, Q soft targets made of r. Such an objective adds to the weight w of
the target a strength c of Q: the gradient on the logits is `w * (p - onehot) + c * (p - Q)`.
Shapes: T scored tokens, C tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from dft_plugin.objectives.base import Number, Objective, ReferenceNeed, Weighed
from dft_plugin.objectives.options import MOST
from dft_plugin.objectives.rows import Rows
from dft_plugin.objectives.targets import Clock, Targets

if TYPE_CHECKING:
    from torch import Tensor

SOFT_KL, SOFT_ENTROPY = "soft_kl", "soft_entropy"
"""In `Rows.added` of an objective that has soft targets: KL(Q || p) and the entropy of Q, in nats, [T]. Their sum is
the cross-entropy of p under Q."""


class ASFT(Objective):
    """Anchored supervised fine-tuning, arXiv 2509.23753: DFT, and a KL divergence that holds on to a frozen reference.

    -sg(p_y) log p_y + strength * KL(r || p) over the whole vocabulary.
    """

    name: ClassVar[str] = "asft"
    summary: ClassVar[str] = "w = p, and strength * KL(reference || model) is added to the loss of each token"
    source: ClassVar[str] = "arXiv 2509.23753; github.com/zhuchichi56/ASFT, train_v2.py"
    helps: ClassVar[str] = "as dft, where the model drifts away: knowledge-heavy data, long trainings"
    reference: ClassVar[ReferenceNeed] = "distribution"
    statistics: ClassVar[tuple[str, ...]] = ("kl",)

    strength: Number = Field(
        default=0.05,
        ge=0,
        le=MOST,
        description="Factor on KL(reference || model); the released code's default is 0.1.",
    )

    def weigh(self, rows: Rows, targets: Targets, clock: Clock | None) -> Weighed:
        """Return p [T], -p log p + strength * KL, and the strength."""
        del targets, clock
        p_T, kl_T = rows.logp_T.exp(), rows.added[SOFT_KL]
        # 0 * -inf, of a target that the model has masked out, is 0.
        nll_T = (-p_T * rows.logp_T).where(p_T > 0, p_T)
        return Weighed(p_T, nll_T + self.strength * kl_T, {"kl": kl_T}, p_T.new_full(p_T.shape, self.strength))


class GIFT(Objective):
    """Gibbs initialisation with finite temperature, arXiv 2601.09233: soft targets Q = softmax(log r + beta * onehot).

    The loss is the cross-entropy of p under Q: SFT that leaves to the reference what it knows besides the target. Each
    token has weight 1, that of Q.
    """

    name: ClassVar[str] = "gift"
    summary: ClassVar[str] = "cross-entropy under softmax(log reference + beta * onehot) in place of the target alone"
    source: ClassVar[str] = "arXiv 2601.09233; github.com/zzy1127/GIFT, fsdp_gift_trainer.py"
    helps: ClassVar[str] = "SFT before reinforcement learning, which wants a model that still explores"
    reference: ClassVar[ReferenceNeed] = "distribution"
    replaces_target: ClassVar[bool] = True

    beta: Number = Field(
        default=20.0,
        ge=0,
        le=MOST,
        description="What the target is raised by, in nats: 0 is distillation, large is plain SFT.",
    )

    def soft_targets(self, reference_CV: Tensor, ids_C: Tensor) -> Tensor:
        """Raise the logit of the target by beta."""
        raised_C1 = reference_CV.gather(1, ids_C[:, None]) + self.beta
        return reference_CV.scatter_(1, ids_C[:, None], raised_C1)

    def weigh(self, rows: Rows, targets: Targets, clock: Clock | None) -> Weighed:
        """Return no weight of the target alone, the cross-entropy under Q, and all strength for Q."""
        del targets, clock
        zero_T = rows.logp_T.new_zeros(rows.logp_T.shape)
        return Weighed(zero_T, rows.added[SOFT_KL] + rows.added[SOFT_ENTROPY], soft_T=zero_T + 1)
