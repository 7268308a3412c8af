"""Unsloth on its CPU backend with the loss active: its numbers, and its own DFT as a peer."""

from __future__ import annotations

import pytest
import unsloth_zoo.cpu.trainer
from support import oracle, tiny, training

from dft_plugin import activate
from dft_trl.unsloth_trainer import UnslothHook

from .fast import KINDS, full, lora

pytestmark = pytest.mark.host


def run(trainer, loss="dft"):
    before = training.trained(trainer.model)
    activate(trainer, loss)
    trainer.train()
    assert tiny.max_gap(before, training.trained(trainer.model)) > 1e-5, "nothing was trained"
    return training.trained(trainer.model)


@pytest.mark.parametrize("kind", KINDS)
def test_first_logged_loss_equals_the_float64_loss(kind, tmp_path):
    trainer = KINDS[kind](tmp_path, max_steps=1)
    batch = dict(next(iter(trainer.get_train_dataloader())))
    trainer.model.train()
    expected = oracle.causal_loss(trainer.model, batch).item()
    attachment = activate(trainer)
    assert isinstance(trainer.compute_loss.__self__, UnslothHook)
    trainer.train()
    assert training.losses(trainer)[0] == pytest.approx(expected, rel=1e-6)
    assert attachment.route.path == "lean"


@pytest.mark.parametrize("kind", KINDS)
def test_weights_equal_those_of_its_own_dft_where_both_are_set_and_where_one_is(kind, tmp_path, capsys):
    theirs = KINDS[kind](tmp_path, loss_type="dft")
    theirs.train()
    expected = training.trained(theirs.model)
    assert tiny.max_gap(expected, run(KINDS[kind](tmp_path))) < 1e-6
    assert "replaces loss_type" not in capsys.readouterr().err
    assert tiny.max_gap(expected, run(KINDS[kind](tmp_path, loss_type="dft"))) < 1e-6
    assert "replaces loss_type: dft" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_four_micro_batches_of_one_equal_one_batch_of_four(kind, tmp_path):
    whole = run(KINDS[kind](tmp_path))
    split = run(KINDS[kind](tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4))
    assert tiny.max_gap(whole, split) < 1e-6


def test_plain_likelihood_trains_the_weights_of_unsloths_own_loss(tmp_path):
    """Its chunked cross-entropy, which takes the labelled forward."""
    theirs = lora(tmp_path)
    theirs.train()
    assert tiny.max_gap(training.trained(theirs.model), run(lora(tmp_path), "nll")) < 1e-6


def test_packing_is_off_on_a_cpu_and_what_is_trained_is_right(tmp_path, capsys):
    trainer = full(tmp_path, packing=True, max_length=32, max_steps=1)
    assert not trainer.args.packing
    assert "packing needs FlashAttention" in capsys.readouterr().out
    batch = dict(next(iter(trainer.get_train_dataloader())))
    assert batch["input_ids"].shape[0] == 4
    expected = oracle.causal_loss(trainer.model, batch).item()
    run(trainer)
    assert training.losses(trainer)[0] == pytest.approx(expected, rel=1e-6)


def test_packed_rows_are_trained_as_by_its_own_dft_where_packing_is_put_on(tmp_path, monkeypatch):
    monkeypatch.setattr(unsloth_zoo.cpu.trainer, "normalize_cpu_training_arguments", lambda args: args)
    changes = {"packing": True, "max_length": 32}
    theirs, ours = full(tmp_path, loss_type="dft", **changes), full(tmp_path, **changes)
    batch = dict(next(iter(ours.get_train_dataloader())))
    assert batch["input_ids"].shape[0] == 1
    expected = oracle.causal_loss(ours.model.train(), batch).item()
    theirs.train()
    assert tiny.max_gap(training.trained(theirs.model), run(ours)) < 1e-6
    assert training.losses(ours)[0] == pytest.approx(expected, rel=1e-6)


def test_evaluation_keeps_its_metrics_and_adds_ours(tmp_path):
    theirs, ours = full(tmp_path, loss_type="dft"), full(tmp_path)
    activate(ours)
    stock, logged = theirs.evaluate(), ours.evaluate()
    for key in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy"):
        assert logged[key] == pytest.approx(stock[key], rel=1e-5)
    assert {"eval_dft/nll", "eval_dft/perplexity"} <= logged.keys()


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    straight = run(lora(tmp_path / "a", max_steps=4))
    run(lora(tmp_path / "b", max_steps=4, save_strategy="steps", save_steps=2))
    resumed = lora(tmp_path / "b", max_steps=4)
    activate(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert tiny.max_gap(straight, training.trained(resumed.model)) < 1e-7
