"""Each pass of LLaMA-Factory's trainer over its data is logged as what it is; `eval_loss` is that of a stock run."""

from __future__ import annotations

from statistics import mean

import pytest

pytest.importorskip("llamafactory")

from support import factory, oracle, watch

pytestmark = pytest.mark.host

HELD_OUT = {"eval_dataset": "held-out", "logging_steps": 2, "max_steps": 3}
KINDS = {"full": {}, "lora": factory.LORA, "packing": {"packing": True, "cutoff_len": 32}}


def trained(home, out, loss="dft", **changes):
    """LLaMA-Factory's trainer after a run, whose last step was not logged; and what it does by hand from now on."""
    run = factory.train(factory.arguments(home, out, **{**HELD_OUT, **changes}), loss)
    return run.trainer, watch.Watch(run.trainer)


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_speaks_of_each_held_out_token_once(kind, home, tmp_path):
    trainer, seen = trained(home, tmp_path, **KINDS[kind])
    for _ in range(2):
        seen.forget()
        logs = trainer.evaluate()
        watch.assert_logged(logs, seen.evaluated, "eval_")
        assert logs["eval_loss"] == pytest.approx(mean(seen.batch_means()), rel=1e-5)


def test_a_stock_runs_loss_of_an_evaluation_is_the_mean_of_batch_means(home, tmp_path):
    """The rule of the test above, in a run without us: a Seq2SeqTrainer counts a smaller last batch as a full one."""
    trainer, seen = trained(home, tmp_path, None)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(mean(seen.batch_means(oracle.nll)), rel=1e-5)
    assert len(set(seen.rows)) > 1, "the last batch was meant to be smaller"


def test_several_held_out_sets_are_kept_apart(home, tmp_path):
    trainer, seen = trained(home, tmp_path, eval_dataset="held-out,plain", eval_on_each_dataset=True)
    logs = trainer.evaluate()
    sets = trainer.eval_dataset
    assert sorted(sets) == ["held-out", "plain"]
    start = 0
    for name, rows in sets.items():
        count = -(-len(rows) // trainer.args.eval_batch_size)
        watch.assert_logged(logs, seen.evaluated[start : start + count], f"eval_{name}_")
        start += count
    assert start == len(seen.evaluated)


def test_a_prediction_speaks_of_its_own_tokens(home, tmp_path):
    trainer, seen = trained(home, tmp_path)
    metrics = trainer.predict(trainer.eval_dataset, metric_key_prefix="predict").metrics
    watch.assert_logged(metrics, seen.evaluated, "predict_")
    assert metrics["predict_loss"] == pytest.approx(mean(seen.batch_means()), rel=1e-5)
    seen.forget()
    watch.assert_logged(trainer.evaluate(), seen.evaluated, "eval_")


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_training_speaks_of_its_own_steps(kind, home, tmp_path):
    trainer, seen = trained(home, tmp_path, **KINDS[kind])
    for _ in range(2):
        seen.forget()
        trainer.train()
        watch.assert_training_logged(trainer, seen, every=2)


@pytest.mark.parametrize("kind", KINDS)
def test_train_evaluate_train(kind, home, tmp_path):
    trainer, seen = trained(home, tmp_path, **KINDS[kind])
    watch.assert_logged(trainer.evaluate(), seen.evaluated, "eval_")
    trainer.train()
    watch.assert_training_logged(trainer, seen, every=2)


def test_an_evaluation_that_generates_is_not_counted(home, tmp_path):
    changes = {"predict_with_generate": True, "max_new_tokens": 5, "do_sample": False}
    trainer, seen = trained(home, tmp_path, **changes)
    logs = trainer.evaluate(**trainer._gen_kwargs)
    assert "eval_loss" not in logs
    assert not any("dft/" in key for key in logs)
    trainer.train()
    watch.assert_training_logged(trainer, seen, every=2)
