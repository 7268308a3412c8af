"""Each pass of Axolotl's trainer over its data is logged as what it is; `eval_loss` is that of a stock run."""

from __future__ import annotations

import pytest

pytest.importorskip("axolotl")

from support import oracle, watch
from support.axolotl_runs import PACKED, prepare, write_config

pytestmark = pytest.mark.host

HELD_OUT = {"val_set_size": 0.25, "eval_strategy": "no", "eval_batch_size": 5, "logging_steps": 2, "max_steps": 3}
KINDS = {
    "padded": HELD_OUT,
    "packed": {**HELD_OUT, **PACKED, "eval_sample_packing": False},
    "packed evaluation": {**HELD_OUT, **PACKED, "eval_sample_packing": True},
}


@pytest.fixture(params=KINDS)
def run(request, home):
    """A trainer with the loss on it, and what it does by hand."""
    _, trainer = prepare(write_config(home, **KINDS[request.param]))
    return trainer, watch.Watch(trainer)


def test_an_evaluation_speaks_of_each_held_out_token_once(run):
    trainer, seen = run
    logs = trainer.evaluate()
    watch.assert_logged(logs, seen.evaluated, "eval_")
    assert logs["eval_loss"] == pytest.approx(seen.mean_over_rows(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stock_runs_loss_of_an_evaluation_is_the_mean_over_rows_of_batch_means(kind, home):
    """The rule of the test above, in a run without us."""
    _, trainer = prepare(write_config(home, **KINDS[kind], drop=["plugins", "loss"]))
    seen = watch.Watch(trainer)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(seen.mean_over_rows(oracle.nll), rel=1e-5)
    # 0.21 packs these rows into one batch.
    differ = len({len(logp_T) for logp_T in seen.evaluated}) > 1
    assert differ or kind == "packed evaluation", "batches were meant to differ"


def test_a_prediction_speaks_of_its_own_tokens(run):
    trainer, seen = run
    trainer.evaluate()
    seen.forget()
    metrics = trainer.predict(trainer.eval_dataset).metrics
    watch.assert_logged(metrics, seen.evaluated, "test_")
    assert metrics["test_loss"] == pytest.approx(seen.mean_over_rows(), rel=1e-5)
    seen.forget()
    watch.assert_logged(trainer.evaluate(), seen.evaluated, "eval_")


def test_a_second_training_speaks_of_its_own_steps(run):
    trainer, seen = run
    for _ in range(2):
        seen.forget()
        trainer.train()
        watch.assert_training_logged(trainer, seen, every=2)


@pytest.mark.newest
def test_train_evaluate_train(run):
    trainer, seen = run
    trainer.train()
    seen.forget()
    evaluated = trainer.evaluate()
    watch.assert_logged(evaluated, seen.evaluated, "eval_")
    assert evaluated["eval_ppl"] == evaluated["eval_dft/perplexity"]
    seen.forget()
    trainer.train()
    watch.assert_training_logged(trainer, seen, every=2)


@pytest.mark.parametrize("key", ["generate_samples", "do_causal_lm_eval"])
def test_what_axolotl_does_after_an_evaluation_is_not_counted(key, home, monkeypatch):
    """It generates, and asks the model for the loss of a text: neither is a token of the held-out set."""
    evaluates = {"eval_strategy": "steps", "eval_steps": 2, "eval_causal_lm_metrics": ["perplexity"]}
    _, trainer = prepare(write_config(home, **{**HELD_OUT, **evaluates, key: True}))
    generated = []
    generate = type(trainer.model).generate
    monkeypatch.setattr(
        type(trainer.model), "generate", lambda *args, **kw: generated.append(1) or generate(*args, **kw)
    )
    seen = watch.Watch(trainer)
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    each = len(seen.evaluated) // len(evaluations)
    for index, entry in enumerate(evaluations):
        watch.assert_logged(entry, seen.evaluated[index * each : (index + 1) * each], "eval_")
    watch.assert_training_logged(trainer, seen, every=2)
    assert generated, "Axolotl was meant to generate"


def test_a_step_outside_an_evaluation_belongs_to_no_pass(home):
    """As in `do_bench_eval`, which fetches its data: it predicts batches of its own, and logs on the first rank."""
    from transformers import TrainerCallback

    class Bench(TrainerCallback):
        def on_evaluate(self, *args, **kwargs):
            batch = next(iter(trainer.get_train_dataloader()))
            loss, logits, _ = trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
            assert logits is not None
            trainer.log({"eval_bench_loss": loss.item()})

    _, trainer = prepare(write_config(home, **HELD_OUT))
    trainer.add_callback(Bench())
    seen = watch.Watch(trainer)
    for _ in range(2):
        seen.forget()
        logs = trainer.evaluate()
        watch.assert_logged(logs, seen.evaluated[:-1], "eval_")
    (*_, bench) = [entry for entry in trainer.state.log_history if "eval_bench_loss" in entry]
    assert not any("dft/" in key for key in bench)
