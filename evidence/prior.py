"""Models that know something: pre-trained on the spot, kept in a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evidence import tasks
from evidence.alphabet import END, encode
from evidence.claims import held
from evidence.model import Size, batch, build
from evidence.tasks import Example
from evidence.training import Schedule, Wait, fit

RATE = 2e-3


@dataclass(frozen=True)
class Prior:
    """The dials of a pre-training.

    Attributes:
        steps: how long; a short one half learns the task.
        unseen_style: share of the sums that are worked out in the style which the others never see.
        ends: whether the token that ends an answer was ever seen.
        size: of the model.
    """

    steps: int
    unseen_style: float = 0.0
    ends: bool = True
    size: Size = field(default_factory=Size)

    def model(self, seed: int, folder: Path, wait: Wait) -> PreTrainedModel:
        """Return the model; it is trained first, where the folder does not hold it yet.

        Args:
            seed: of its weights and of what it reads.
            folder: of all models.
            wait: as in `training.fit`.
        """
        name = hashlib.sha256(json.dumps([asdict(self), seed, RATE]).encode()).hexdigest()[:16]
        path = folder / f"{name}.pt"
        with held(folder / f"{name}.lock"):
            if not path.exists():
                self._train(seed, path, wait)
        model = build(self.size, seed)
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()

    def _train(self, seed: int, path: Path, wait: Wait) -> None:
        model = build(self.size, seed)
        fit(model, self._batches(seed), Schedule(self.steps, 32, RATE), "nll", wait)
        partial = path.with_suffix(".partial")
        torch.save(model.state_dict(), partial)
        partial.rename(path)

    def _batches(self, seed: int) -> Iterator[dict[str, Tensor]]:
        rng = Random(f"pre-training {seed}")
        end = END if self.ends else encode("\n")[0]
        while True:
            yield batch([self._example(rng) for _ in range(32)], end)

    def _example(self, rng: Random) -> Example:
        kind = rng.random()
        if kind < 0.55:
            unseen = rng.random() < self.unseen_style
            style = tasks.UNSEEN if unseen else rng.randrange(tasks.STYLES)
            return tasks.add(rng, style, digits=4 if rng.random() < 0.25 else 3)
        if kind < 0.7:
            return tasks.reverse(rng)
        if kind < 0.85:
            return tasks.sort(rng)
        return rng.choice(tasks.world()[: tasks.FACTS])
