"""Each pass of LLaMA-Factory's trainer over its data is logged as what it is; `eval_loss` is that of a stock run."""

from __future__ import annotations

from statistics import mean

import pytest

pytest.importorskip("llamafactory")

from support import factory, oracle, passes

pytestmark = pytest.mark.host

HELD_OUT = {"eval_dataset": "held-out", "logging_steps": 2, "max_steps": 3}
KINDS = {"full": {}, "lora": factory.LORA, "packing": {"packing": True, "cutoff_len": 32}}


def trained(home, out, loss="dft", **changes):
    """LLaMA-Factory's trainer after a run, whose last step was not logged; and what it does by hand from now on."""
    run = factory.train(factory.arguments(home, out, **{**HELD_OUT, **changes}), loss)
    return run.trainer, passes.Watch(run.trainer)


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_speaks_of_each_held_out_token_once(kind, home, tmp_path):
    trainer, watch = trained(home, tmp_path, **KINDS[kind])
    for _ in range(2):
        watch.forget()
        logs = trainer.evaluate()
        passes.assert_logged(logs, watch.evaluated, "eval_")
        assert logs["eval_loss"] == pytest.approx(mean(watch.batch_means()), rel=1e-5)


def test_a_stock_runs_loss_of_an_evaluation_is_the_mean_of_batch_means(home, tmp_path):
    """The rule of the test above, in a run without us: a Seq2SeqTrainer counts a smaller last batch as a full one."""
    trainer, watch = trained(home, tmp_path, None)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(mean(watch.batch_means(oracle.nll)), rel=1e-5)
    assert len(set(watch.rows)) > 1, "the last batch was meant to be smaller"


def test_several_held_out_sets_are_kept_apart(home, tmp_path):
    trainer, watch = trained(home, tmp_path, eval_dataset="held-out,plain", eval_on_each_dataset=True)
    logs = trainer.evaluate()
    sets = trainer.eval_dataset
    assert sorted(sets) == ["held-out", "plain"]
    start = 0
    for name, rows in sets.items():
        count = -(-len(rows) // trainer.args.eval_batch_size)
        passes.assert_logged(logs, watch.evaluated[start : start + count], f"eval_{name}_")
        start += count
    assert start == len(watch.evaluated)


def test_a_prediction_speaks_of_its_own_tokens(home, tmp_path):
    trainer, watch = trained(home, tmp_path)
    metrics = trainer.predict(trainer.eval_dataset, metric_key_prefix="predict").metrics
    passes.assert_logged(metrics, watch.evaluated, "predict_")
    assert metrics["predict_loss"] == pytest.approx(mean(watch.batch_means()), rel=1e-5)
    watch.forget()
    passes.assert_logged(trainer.evaluate(), watch.evaluated, "eval_")


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_training_speaks_of_its_own_steps(kind, home, tmp_path):
    trainer, watch = trained(home, tmp_path, **KINDS[kind])
    for _ in range(2):
        watch.forget()
        trainer.train()
        passes.assert_training_logged(trainer, watch, every=2)


@pytest.mark.parametrize("kind", KINDS)
def test_train_evaluate_train(kind, home, tmp_path):
    trainer, watch = trained(home, tmp_path, **KINDS[kind])
    passes.assert_logged(trainer.evaluate(), watch.evaluated, "eval_")
    trainer.train()
    passes.assert_training_logged(trainer, watch, every=2)


def test_an_evaluation_that_generates_is_not_counted(home, tmp_path):
    changes = {"predict_with_generate": True, "max_new_tokens": 5, "do_sample": False}
    trainer, watch = trained(home, tmp_path, **changes)
    logs = trainer.evaluate(**trainer._gen_kwargs)
    assert "eval_loss" not in logs
    assert not any("dft/" in key for key in logs)
    trainer.train()
    passes.assert_training_logged(trainer, watch, every=2)
