"""What a model is trained by, each with the same answers sampled and the same answers trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from evidence.losses import CORE
from evidence.model import batch
from evidence.offline import asking
from evidence.offline.asking import Budget
from evidence.sampling import LONGEST
from evidence.tasks import Example
from evidence.training import Schedule, Wait, fit


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        model: is changed.
        rate: the highest learning rate.
        seed: of questions, samples and order.
        budget: what may be spent.
        folder: for what a trainer writes; removed afterwards.
        wait: returns when work may go on.
    """

    model: PreTrainedModel
    rate: float
    seed: int
    budget: Budget
    folder: Path
    wait: Wait


@dataclass
class Spent:
    """What a training took.

    Attributes:
        sampled: answers.
        sampled_tokens: of these.
        kept: right answers among them, or pairs.
        trained: answers that gradients came from, each as often as it was used.
        trained_tokens: of these.
    """

    sampled: int = 0
    sampled_tokens: int = 0
    kept: int = 0
    trained: int = 0
    trained_tokens: int = 0


Method = Callable[[Training], Spent]


def kept(loss: str, rounds: int | None = None) -> Method:
    """Return a method: train on right answers of the model's own.

    Args:
        loss: its name.
        rounds: in which it samples again; None: those of the budget.
    """

    def train(one: Training) -> Spent:
        spent, every = Spent(), rounds or one.budget.rounds
        asked = asking.questions(one.budget.questions, one.seed)
        share = len(asked) // every
        for number in range(every):
            part = asked[number * share : (number + 1) * share]
            answered = asking.ask(one.model, part, one.budget.tries, one.seed + 97 * number, one.wait)
            right = [good for asked_one in answered for good in asked_one.right]
            given = [text for asked_one in answered for text in asked_one.given]
            spent.sampled += len(given)
            spent.sampled_tokens += asking.tokens(given, LONGEST)
            spent.kept += len(right)
            if right:
                schedule = Schedule(one.budget.steps // every, one.budget.rows, one.rate)
                fit(one.model, _batches(right, one, number, spent), schedule, CORE[loss], one.wait)
        return spent

    return train


def _batches(right: list[Example], one: Training, number: int, spent: Spent) -> Iterator[dict[str, Tensor]]:
    rng = Random(f"order {one.seed} {number}")
    while True:
        chosen = [rng.choice(right) for _ in range(one.budget.rows)]
        spent.trained += len(chosen)
        spent.trained_tokens += asking.tokens((good.answer for good in chosen), LONGEST)
        yield batch(chosen)


def _by_trl(name: str) -> Method:
    def train(one: Training) -> Spent:
        # Not everybody who runs the study has TRL.
        from evidence.offline import by_trl

        trained: Spent = getattr(by_trl, name)(one)
        return trained

    return train


WITHOUT_TRL: Mapping[str, Method] = {
    "RFT": kept("SFT", 1),
    "DFT": kept("DFT", 1),
    "alpha 0.5": kept("alpha 0.5", 1),
    "RFT, iterated": kept("SFT"),
    "DFT, iterated": kept("DFT"),
}
"""By the loop of the study."""

BY_TRL: Mapping[str, Method] = {name: _by_trl(name.lower()) for name in ("DPO", "GRPO", "RLOO")}
"""By TRL's trainers."""

_ORDER = ("RFT", "DFT", "DPO", "GRPO", "DFT, iterated", "alpha 0.5", "RLOO", "RFT, iterated")
METHODS: Mapping[str, Method] = {name: {**WITHOUT_TRL, **BY_TRL}[name] for name in _ORDER}
"""What is compared, the most telling first."""


def described(name: str) -> dict[str, Any]:
    """Return what stands behind a name, for a row."""
    if name in BY_TRL:
        return {"trainer": f"trl.{name}Trainer"}
    loss, _, again = name.replace("RFT", "SFT").partition(", ")
    return {"loss": CORE[loss], "iterated": bool(again)} if loss in CORE else {}
