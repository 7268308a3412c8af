"""LLaMA-Factory with each kind of objective: losses and weights against float64, however a step is put together."""

from __future__ import annotations

import pytest

pytest.importorskip("llamafactory")

from support import by_hand, factory, given
from support.kinds import KINDS, STEPS

pytestmark = pytest.mark.host

SPLIT = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
SPLITS = {
    "whole": {},
    "split": SPLIT,
    "packed": {"packing": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "neat": {"neat_packing": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
}
COPY = {"reference": "copy"}


def train(home, out, loss, **changes):
    """Returns the run, and what it was given."""
    config = factory.arguments(home, out, **{"learning_rate": by_hand.RATE, "max_steps": STEPS, **changes})
    seen = []

    def prepare(trainer):
        given.move_adapters(trainer.model)
        seen.append(given.watched(trainer))

    return factory.train(config, loss, prepare), seen[0]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["lora", "full"])
def test_a_step_is_that_of_its_formula(model, kind, split, home, tmp_path):
    loss, formula = KINDS[kind]
    compares = {} if kind == "row" or model == "lora" else COPY
    changes = {**SPLITS[split], **(factory.LORA if model == "lora" else {})}
    run, seen = train(home, tmp_path, {**loss, **compares}, **changes)
    given.require(run.trainer, seen, changes.get("gradient_accumulation_steps", 1), formula, factory.ROUNDED)
