"""LLaMA-Factory with losses that divide by what they keep, or change during the run: each step against float64."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("llamafactory")

from support import by_hand, factory, tiny

pytestmark = pytest.mark.host

CASES = {
    "kept": ({"name": "thresholded", "threshold": 0.02}, by_hand.above(0.02), [None] * 3),
    "ramp": (
        {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 1.0}, "first": {"name": "nll", "for": 1}},
        lambda logp, sequence, step: (-((step / 3 * logp.detach()).exp()) * logp, torch.ones_like(logp)),
        [None, 1 / 3, 2 / 3],
    ),
}


@pytest.mark.parametrize(("size", "steps"), [(4, 1), (2, 2)])
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_its_formula(case, size, steps, home, tmp_path):
    loss, formula, alphas = CASES[case]
    changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    config = factory.arguments(home, tmp_path, max_steps=3, learning_rate=by_hand.RATE, **changes)
    kept = {}

    def prepare(trainer):
        kept.update(rows=by_hand.watched(trainer), model=copy.deepcopy(trainer.model))

    run = factory.train(config, loss, prepare)
    expected = by_hand.trained(kept["model"], by_hand.in_steps(kept["rows"], 4, 3), formula)
    weights = {name: value.double() for name, value in run.after.items()}
    assert tiny.max_gap(weights, expected.weights) < expected.tolerance
    assert run.losses == pytest.approx(expected.losses, rel=1e-5, abs=factory.ROUNDED)
    assert [entry["dft/loss"] for entry in run.logs] == pytest.approx(expected.losses, rel=1e-5)
    found = [entry.get("dft/alpha") for entry in run.logs]
    assert found == [value if value is None else pytest.approx(value) for value in alphas]
