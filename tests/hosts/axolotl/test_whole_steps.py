"""Axolotl with losses that divide by what they keep, or change during the run: each step against float64."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("axolotl")

from support import by_hand, tiny
from support.axolotl_runs import prepare, write_config

pytestmark = pytest.mark.host

CASES = {
    "kept": ({"name": "thresholded", "threshold": 0.02}, by_hand.above(0.02), [None] * 3),
    "ramp": (
        {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 1.0}, "first": {"name": "nll", "for": 1}},
        lambda logp, sequence, step: (-((step / 3 * logp.detach()).exp()) * logp, torch.ones_like(logp)),
        [None, 1 / 3, 2 / 3],
    ),
}


@pytest.mark.parametrize(("size", "steps"), [(4, 1), pytest.param(2, 2, marks=pytest.mark.newest)])
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_its_formula(case, size, steps, home):
    from axolotl.train import execute_training

    loss, formula, alphas = CASES[case]
    changes = {"micro_batch_size": size, "gradient_accumulation_steps": steps, "learning_rate": by_hand.RATE}
    # Rows that a worker collates are not seen here.
    changes |= {"dataloader_num_workers": 0, "dataloader_prefetch_factor": None}
    cfg, trainer = prepare(write_config(home, loss=loss, **changes))
    model, rows = copy.deepcopy(trainer.model), by_hand.watched(trainer)
    # A copy of the model is attached as well, and answers labels alone.
    execute_training(cfg, trainer, None)
    expected = by_hand.trained(model, by_hand.in_steps(rows, 4, 3), formula)
    weights = {name: value.double() for name, value in by_hand.training.trained(trainer.model).items()}
    assert tiny.max_gap(weights, expected.weights) < expected.tolerance
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in logs] == pytest.approx(expected.losses, rel=1e-5)
    assert [entry["dft/loss"] for entry in logs] == pytest.approx(expected.losses, rel=1e-5)
    found = [entry.get("dft/alpha") for entry in logs]
    assert found == [value if value is None else pytest.approx(value) for value in alphas]
