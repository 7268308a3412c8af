"""`dft evaluate` with LLaMA-Factory: the numbers of its own `do_eval`, of several sets, and of what was trained."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("llamafactory")

from support import evaluated, factory

pytestmark = pytest.mark.host

HELD_OUT = {"eval_dataset": "held-out", "per_device_eval_batch_size": 4, "do_eval": True}
LOSS = {"name": "dft", "alpha": 0.5}


def results(folder):
    return json.loads((folder / "eval_results.json").read_text())


def test_numbers_are_those_of_do_eval_before_training_and_after_it(home, tmp_path):
    config = factory.arguments(home, tmp_path / "out", **HELD_OUT, **factory.LORA, save_strategy="steps", save_steps=2)
    path = factory.write_config(tmp_path / "sft.yaml", **config, loss=LOSS)
    factory.train(config, LOSS)
    after = results(tmp_path / "out")
    before = evaluated.contents(tmp_path / "out")
    for place in ("out", "out/checkpoint-2"):
        evaluated.assert_logged(evaluated.evaluate(path, "--checkpoint", tmp_path / place)["sets"]["eval"], after)
    assert evaluated.contents(tmp_path / "out") == before
    found = evaluated.evaluate(path, "learning_rate=0.5")
    factory.train({**config, "do_train": False, "output_dir": str(tmp_path / "alone")}, LOSS)
    evaluated.assert_logged(found["sets"]["eval"], results(tmp_path / "alone"))
    assert found["sets"]["eval"]["dft/nll"] != pytest.approx(after["eval_dft/nll"], rel=1e-4)


def test_each_of_several_sets_has_its_numbers(home, tmp_path):
    config = factory.arguments(
        home, tmp_path / "out", **{**HELD_OUT, "eval_dataset": "held-out,chat", "eval_on_each_dataset": True}
    )
    path = factory.write_config(tmp_path / "sft.yaml", **config, loss=LOSS)
    factory.train({**config, "do_train": False}, LOSS)
    found = evaluated.evaluate(path)["sets"]
    assert found.keys() == {"eval_held-out", "eval_chat"}
    for name, numbers in found.items():
        evaluated.assert_logged(numbers, results(tmp_path / "out"), name)


def test_without_evaluation_data_it_says_which_lines_are_missing(home, tmp_path):
    path = factory.write_config(tmp_path / "sft.yaml", **factory.arguments(home, tmp_path / "out"), loss=LOSS)
    assert "Add `eval_dataset: NAME`, or `val_size: 0.05`." in evaluated.refused(path)
