"""SFTTrainer with losses that divide by a sum of weights, look at a sequence, or change: each step against float64."""

from __future__ import annotations

import pytest
import torch
from support import by_hand, tiny, training
from support.weighers import Divided, OfBatch, OfSequence

from dft_plugin import activate
from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host

RAMP = {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 1.0}, "first": {"name": "nll", "for": 1}}


def ramp(logp, sequence, step):
    return -((step / 3 * logp.detach()).exp()) * logp, torch.ones_like(logp)


CASES = {
    "weights": (Divided(), by_hand.dft),
    "kept": ({"name": "thresholded", "threshold": 0.02}, by_hand.above(0.02)),
    "sequence": (OfSequence(), by_hand.of_sequence),
    "ramp": (RAMP, ramp),
}


@pytest.mark.parametrize(("size", "steps"), [(4, 1), (1, 4)])
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_its_formula(case, size, steps, tmp_path):
    loss, formula = CASES[case]
    trainer = training.sft_trainer(
        tmp_path,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=steps,
        learning_rate=by_hand.RATE,
    )
    rows = by_hand.watched(trainer)
    activate(trainer, loss)
    trainer.train()
    expected = by_hand.trained(tiny.llama(), by_hand.in_steps(rows, 4, 3), formula)
    ours = {name: value.double() for name, value in training.trained(trainer.model).items()}
    assert tiny.max_gap(ours, expected.weights) < expected.tolerance
    assert training.losses(trainer) == pytest.approx(expected.losses, rel=1e-5)
    logs = training.train_logs(trainer)
    assert [entry["dft/loss"] for entry in logs] == pytest.approx(expected.losses, rel=1e-5)
    assert [entry.get("dft/alpha") for entry in logs] == ([None, 1 / 3, 2 / 3] if case == "ramp" else [None] * 3)


@pytest.mark.parametrize("only", [True, False])
def test_an_evaluation_divides_each_batch_and_the_whole_pass(only, tmp_path):
    trainer = training.sft_trainer(tmp_path, prediction_loss_only=only)
    activate(trainer, Divided())
    found = trainer.evaluate()
    model, rows = tiny.llama().double().eval(), training.rows(10, seed=1)
    with torch.no_grad():
        parts = [by_hand.scored(model, batch, by_hand.dft) for batch in (rows[:4], rows[4:8], rows[8:])]
    means = [(loss.sum() / share.sum()).item() for loss, share in parts]
    assert found["eval_loss"] == pytest.approx((4 * means[0] + 4 * means[1] + 2 * means[2]) / 10, rel=1e-5)
    whole = sum(loss.sum().item() for loss, _ in parts) / sum(share.sum().item() for _, share in parts)
    assert found["eval_dft/loss"] == pytest.approx(whole, rel=1e-5)


def test_a_router_is_refused_and_one_without_a_loss_is_not(tmp_path):
    with pytest.raises(ConflictError, match=r"in TRL: `router_aux_loss_coef: 0\.0`"):
        activate(training.sft_trainer(tmp_path, tiny.mixtral()), Divided())
    model = tiny.mixtral(output_router_logits=False)
    trainer = training.sft_trainer(tmp_path, model, router_aux_loss_coef=0.0, max_steps=1)
    activate(trainer, Divided())
    trainer.train()


def test_a_batch_that_is_split_is_refused(tmp_path):
    with pytest.raises(ConflictError, match="gradient_accumulation_steps is 2"):
        activate(training.sft_trainer(tmp_path, gradient_accumulation_steps=2), OfBatch())


def test_packing_that_says_nowhere_where_an_example_ends_is_refused_for_sequences(tmp_path):
    trainer = training.sft_trainer(tmp_path, packing=True, packing_strategy="wrapped")
    with pytest.raises(ConflictError, match="`packing_strategy: wrapped`: it says nowhere where an example ends"):
        activate(trainer, OfSequence())
    activate(trainer, "dft")
