"""Trainings of which some batches are not finite."""

from __future__ import annotations

import copy
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

from support import tiny, training
from support.spoiled import BAD, poison


def rows(*bad: int, count: int = 24) -> list[dict[str, list[int]]]:
    """Return the usual rows; those that are named begin with the token, no other has it."""
    made = training.rows(count)
    for number, row in enumerate(made):
        row["input_ids"] = [5 if token == BAD else token for token in row["input_ids"]]
        row["labels"] = [5 if token == BAD else token for token in row["labels"]]
        if number in bad:
            row["input_ids"][0] = BAD
    return made


class History(TrainerCallback):
    """Keeps the weights after each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights.append(copy.deepcopy(training.trained(model)))

    on_step_end = on_train_begin


def in_order(trainer: Any) -> None:
    """Have the rows come in their order, so that it is known which step has which."""
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(trainer.train_dataset)


def trainer(make: Any, out: Any, *bad: int, model: Any = None, **changes: Any) -> tuple[Any, History]:
    """Make a trainer whose data has bad rows, in their order."""
    made = make(out, model, **changes)
    poison(made.model)
    made.train_dataset = Dataset.from_list(rows(*bad))
    in_order(made)
    history = History()
    made.add_callback(history)
    return made, history


def at_step(made: Any, step: int) -> History:
    """Have the first row of each micro-batch of a step be NaN, in a trainer of any host, whatever its data is."""

    def spoil(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not (made.model.training and torch.is_grad_enabled() and made.state.global_step == step - 1):
            return output
        bad = torch.zeros(len(output), 1, 1, dtype=torch.bool)
        bad[0] = True
        return output.masked_fill(bad, float("nan"))

    made.model.get_input_embeddings().register_forward_hook(spoil)
    history = History()
    made.add_callback(history)
    return history


def require_left_out(made: Any, history: History) -> None:
    """Check that step 2 of three was left out, and nothing else was."""
    assert made.state.global_step == 3
    assert tiny.max_gap(history.weights[2], history.weights[1]) == 0
    assert tiny.max_gap(history.weights[1], history.weights[0]) > 0
    assert tiny.max_gap(history.weights[3], history.weights[2]) > 0
    assert all(bool(w.isfinite().all()) for w in history.weights[3].values())
    assert [entry["dft/skipped"] for entry in training.train_logs(made)] == [0, 1, 0]
