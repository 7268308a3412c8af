"""Evaluation of ms-swift with the loss active."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("swift")

from support import oracle, swift_runs

from dft_plugin.hf.wrapping import wrapper_of

pytestmark = pytest.mark.host

WEIGHTS = (oracle.dft, oracle.nll)


@pytest.fixture(scope="module")
def evaluated(home):
    """Keys of a run that evaluates after each of two steps, and moves nothing."""
    held_out = [str(home / "held-out.jsonl")]
    return {"val_dataset": held_out, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.0}


def train(home, out, loss, **changes):
    return swift_runs.train(swift_runs.config(home, out, **changes), loss)


def by_hand(run):
    """Losses and likelihoods of the held-out targets, by batch, from logits of the model in float64."""
    trainer = run.trainer
    wrapper_of(trainer).remove()
    model = trainer.model.double().eval()
    for batch in trainer.get_eval_dataloader():
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        yield [oracle.token_losses(logits[:, :-1], batch["labels"][:, 1:], weight) for weight in WEIGHTS]


def test_eval_nll_and_eval_dft_loss_are_exact_and_eval_loss_is_a_mean_of_batches(home, tmp_path, evaluated):
    run = train(home, tmp_path / "out", "dft", **evaluated)
    first, second = run.evaluations
    assert first["eval_dft/nll"] == second["eval_dft/nll"]
    losses, likelihoods = zip(*by_hand(run), strict=True)
    nll = torch.cat(likelihoods)
    assert len(losses) == 3
    assert first["eval_dft/tokens"] == len(nll)
    assert first["eval_dft/nll"] == pytest.approx(float(nll.mean()), rel=1e-6)
    assert first["eval_dft/loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-6)
    of_batches = float(torch.stack([part.mean() for part in losses]).mean())
    assert first["eval_loss"] == pytest.approx(of_batches, rel=1e-5)
    assert first["eval_loss"] != pytest.approx(first["eval_dft/loss"], rel=1e-3), "the data do not show it"


def test_beside_the_loss_stands_what_a_stock_run_evaluates(home, tmp_path, evaluated):
    """One batch holds the whole set, where ms-swift's own mean is the mean over tokens."""
    whole = {**evaluated, "per_device_eval_batch_size": 10, "max_steps": 1}
    stock = train(home, tmp_path / "a", None, **whole).evaluations[0]
    theirs = train(home, tmp_path / "b", None, **whole, enable_dft_loss=True).evaluations[0]
    ours = train(home, tmp_path / "c", "dft", **whole).evaluations[0]
    assert ours["eval_dft/nll"] == pytest.approx(stock["eval_loss"], rel=1e-6)
    assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-5)
    assert ours["eval_token_acc"] == stock["eval_token_acc"]


def test_statistics_of_an_evaluation_do_not_leak_into_training(home, tmp_path, evaluated):
    changes = {"learning_rate": 1.0, "max_steps": 3}
    plain = train(home, tmp_path / "a", "dft", **changes)
    both = train(home, tmp_path / "b", "dft", **{**evaluated, **changes})
    for mine, theirs in zip(plain.logs, both.logs, strict=True):
        for key in (key for key in mine if key.startswith("dft/") or key == "token_acc"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-6), key


def test_a_metric_that_reads_logits_gets_them(home, tmp_path, evaluated):
    changes = {**evaluated, "eval_metric": "acc", "learning_rate": 0.5, "max_steps": 4, "eval_steps": 4}
    found = [train(home, tmp_path / str(loss), loss, **changes).evaluations[-1] for loss in (None, "nll")]
    assert found[0]["eval_token_acc"] == found[1]["eval_token_acc"] > 0.1
    # Four steps at such a rate make more of what was rounded in the first.
    assert found[0]["eval_loss"] == pytest.approx(found[1]["eval_loss"], rel=1e-4)


def test_the_lowest_nll_is_the_best_though_ms_swift_takes_the_highest(home, tmp_path, evaluated, capsys):
    changes = {**evaluated, "metric_for_best_model": "eval_dft/nll", "learning_rate": 0.5, "max_steps": 3}
    run = train(home, tmp_path / "out", "nll", **changes, save_strategy="steps", save_steps=1, save_total_limit=5)
    values = {entry["step"]: entry["eval_dft/nll"] for entry in run.evaluations}
    assert len(set(values.values())) == 3
    assert run.trainer.state.best_metric == pytest.approx(min(values.values()), rel=1e-6)
    assert min(values.values()) < 0.9 * max(values.values())
    assert "greater_is_better (the lowest eval_dft/nll is the best)" in capsys.readouterr().err


def test_what_the_best_checkpoint_goes_by_is_said_where_there_is_an_evaluation(home, tmp_path, evaluated, capsys):
    for changes, said in ((evaluated, True), ({}, False)):
        train(home, tmp_path / str(said), "dft", **changes, max_steps=1)
        assert ("dft: the best checkpoint" in capsys.readouterr().err) is said
