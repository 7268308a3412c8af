"""Evaluation, prediction and plots of LLaMA-Factory with the loss active."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("llamafactory")

from support import factory

pytestmark = pytest.mark.host

HELD_OUT = {"eval_dataset": "held-out", "per_device_eval_batch_size": 10}


def evaluations(run):
    return [entry for entry in run.trainer.state.log_history if "eval_loss" in entry]


def test_evaluation_logs_the_loss_and_beside_it_stock_cross_entropy(home, tmp_path):
    """One batch holds the whole set, where LLaMA-Factory's own mean is the mean over tokens."""
    config = factory.arguments(home, tmp_path, **HELD_OUT, eval_strategy="steps", eval_steps=1, learning_rate=0.0)
    stock, ours = factory.train(config), factory.train(config, "dft")
    theirs = factory.train({**config, "use_dft_loss": True})
    assert len(evaluations(ours)) == 3, "after each step and at the end"
    for entry in evaluations(ours):
        assert entry["eval_dft/nll"] == pytest.approx(evaluations(stock)[0]["eval_loss"], rel=1e-5)
        assert entry["eval_loss"] == pytest.approx(evaluations(theirs)[0]["eval_loss"], rel=1e-5)


def test_statistics_of_an_evaluation_do_not_leak_into_training(home, tmp_path):
    config = factory.arguments(home, tmp_path, max_steps=3)
    evaluated = {**config, **HELD_OUT, "eval_strategy": "steps", "eval_steps": 1}
    plain, with_evaluation = factory.train(config, "dft"), factory.train(evaluated, "dft")
    for mine, theirs in zip(plain.logs, with_evaluation.logs, strict=True):
        for key in (key for key in mine if key.startswith("dft/")):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-6), key


@pytest.mark.parametrize("changes", [{}, {"packing": True}, factory.LORA], ids=["full", "packing", "lora"])
def test_compute_accuracy_is_that_of_a_stock_run(changes, home, tmp_path):
    config = factory.arguments(
        home, tmp_path, **HELD_OUT, **changes, compute_accuracy=True, do_eval=True, learning_rate=0.0, max_steps=1
    )
    found = []
    for loss in (None, "dft"):
        factory.train(config, loss)
        found.append(json.loads((tmp_path / "eval_results.json").read_text()))
    assert found[0]["eval_accuracy"] == found[1]["eval_accuracy"]
    assert "eval_dft/perplexity" in found[1]


def test_evaluation_alone_needs_no_training(home, tmp_path):
    config = factory.arguments(home, tmp_path, **HELD_OUT, do_train=False, do_eval=True)
    factory.train(config, "dft")
    results = json.loads((tmp_path / "eval_results.json").read_text())
    assert results["eval_loss"] == pytest.approx(results["eval_dft/loss"], rel=1e-5)


def test_predict_with_generate_writes_what_a_stock_run_writes(home, tmp_path):
    config = factory.arguments(
        home,
        tmp_path,
        **HELD_OUT,
        max_steps=1,
        learning_rate=0.0,
        do_predict=True,
        do_eval=True,
        predict_with_generate=True,
        max_new_tokens=5,
        do_sample=False,
    )
    written = []
    for loss in (None, "dft"):
        factory.train(config, loss)
        written.append((tmp_path / "generated_predictions.jsonl").read_text())
    assert written[0] == written[1]
    assert len(written[0].splitlines()) == 10


def test_plot_loss_draws_nll_and_mean_probability_as_well(home, tmp_path):
    config = factory.arguments(home, tmp_path, **HELD_OUT, eval_strategy="steps", eval_steps=1, plot_loss=True)
    factory.train(config, "dft")
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "training_loss.png",
        "training_eval_loss.png",
        "training_dft_nll.png",
        "training_dft_mean_prob.png",
        "training_eval_dft_nll.png",
        "training_eval_dft_mean_prob.png",
    }


def test_without_plot_loss_nothing_is_drawn(home, tmp_path):
    factory.train(factory.arguments(home, tmp_path, max_steps=1), "dft")
    assert not list(tmp_path.glob("*.png"))
