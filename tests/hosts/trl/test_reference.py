"""`dft train` in TRL with losses that compare with a reference: by YAML, against float64 from the data set on."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from support import referred, tiny, trl_runs
from support.referred import LOSSES
from support.trl_runs import LORA, batch, train

pytestmark = pytest.mark.host


@pytest.fixture
def folder(tmp_path):
    return trl_runs.make_folder(tmp_path)


def logits(model, inputs):
    with torch.no_grad():
        return model(**{key: value for key, value in inputs.items() if key != "labels"}).logits


@pytest.mark.parametrize("loss", ["prift", "asft"])
def test_the_second_loss_equals_float64_against_the_base_model(loss, folder):
    (first, second), err = train(folder, LOSSES[loss][0], LORA)
    assert err.count("; reference: the base model, its adapters off (one more forward pass") == 1
    model = PeftModel.from_pretrained(tiny.llama(), folder / "out" / "checkpoint-1", is_trainable=True)
    inputs = batch(folder)
    expected, _ = referred.truth(model, inputs, logits(tiny.llama(), inputs), LOSSES[loss][1])
    assert second["loss"] == pytest.approx(expected, rel=1e-5)
    assert second["dft/loss"] == pytest.approx(expected, rel=1e-5)
    assert abs(second["loss"] - first["loss"]) > 1e-3, "nothing was trained"
    if loss == "asft":
        assert abs(first["dft/kl"]) < 1e-6 < second["dft/kl"]


@pytest.mark.parametrize("loss", [pytest.param("prift", marks=pytest.mark.full), "asft"])
def test_full_training_against_a_copy(loss, folder):
    (first, second), err = train(folder, {**LOSSES[loss][0], "reference": "copy"})
    assert err.count("; reference: a frozen copy of the model, as it began (one more forward pass") == 1
    model, inputs = tiny.llama(), batch(folder)
    model = type(model).from_pretrained(folder / "out" / "checkpoint-1")
    expected, _ = referred.truth(model, inputs, logits(tiny.llama(), inputs), LOSSES[loss][1])
    assert second["loss"] == pytest.approx(expected, rel=1e-5)
    assert abs(second["loss"] - first["loss"]) > 1e-3, "nothing was trained"
