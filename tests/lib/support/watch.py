"""What each pass of a trainer over its data (a training, an evaluation, a prediction) should have logged, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from support import oracle


class Watch:
    """Scores in float64 every batch that a trainer takes, under the weights of that time.

    Attributes:
        trained: log p [T] of the targets of each micro-batch that was trained.
        evaluated: the same of each batch that was evaluated or predicted.
        rows: how many rows each of those had.
    """

    def __init__(self, trainer: Any) -> None:
        self.trained: list[Tensor] = []
        self.evaluated: list[Tensor] = []
        self.rows: list[int] = []
        step, predict = trainer.training_step, trainer.prediction_step

        def training_step(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            model.train()
            self.trained.append(_by_hand(model, inputs))
            return step(model, inputs, *args, **kwargs)

        def prediction_step(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            self.evaluated.append(_by_hand(model, inputs))
            self.rows.append(inputs["labels"].shape[0])
            return predict(model, inputs, *args, **kwargs)

        trainer.training_step, trainer.prediction_step = training_step, prediction_step

    def forget(self) -> None:
        """Begin anew."""
        for seen in (self.trained, self.evaluated, self.rows):
            seen.clear()

    def mean_over_rows(self, weight: oracle.Weight = oracle.dft) -> float:
        """What transformers' evaluation_loop gives for these token losses: the mean over rows of batch means."""
        means = self.batch_means(weight)
        return sum(mean * rows for mean, rows in zip(means, self.rows, strict=True)) / sum(self.rows)

    def batch_means(self, weight: oracle.Weight = oracle.dft) -> list[float]:
        """The loss of each evaluated batch by itself."""
        return [float((-weight(logp_T.exp()) * logp_T).mean()) for logp_T in self.evaluated]


def _by_hand(model: Any, inputs: dict[str, Any]) -> Tensor:
    # What dropout draws here, it draws again in the step.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        logits = model(**{key: value for key, value in inputs.items() if key != "labels"}).logits
    logits, labels = logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()
    kept = labels != -100
    return oracle.log_probabilities(logits[kept], labels[kept])


def statistics(batches: Sequence[Tensor], prefix: str = "") -> dict[str, float]:
    """`dft/*` of all tokens of some batches, under the loss `dft`."""
    logp_T = torch.cat(list(batches))
    p_T = logp_T.exp()
    nll = -logp_T.mean()
    found = {
        "loss": -(p_T * logp_T).mean(),
        "nll": nll,
        "perplexity": nll.exp(),
        "mean_prob": p_T.mean(),
        "mean_weight": p_T.mean(),
        "effective_tokens": p_T.sum() ** 2 / p_T.square().sum(),
        "tokens": len(logp_T),
        "low_weight_share": (p_T < 0.01).double().mean(),
    }
    return {f"{prefix}dft/{key}": float(value) for key, value in found.items()}


def assert_logged(logs: dict[str, float], batches: Sequence[Tensor], prefix: str = "") -> None:
    """Assert that a log speaks of the tokens of these batches and of no others."""
    expected = statistics(batches, prefix)
    found = {key: logs.get(key) for key in expected}
    assert found == pytest.approx(expected, rel=1e-5), f"{found} instead of {expected}"


def assert_training_logged(trainer: Any, watch: Watch, every: int) -> None:
    """Assert that each log of the last training speaks of its own steps, of which the last were not logged."""
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(watch.trained) % every, "some steps were meant to be left over"
    assert len(logs) == len(watch.trained) // every
    for index, entry in enumerate(logs):
        assert_logged(entry, watch.trained[index * every : (index + 1) * every])
