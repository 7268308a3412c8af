"""Evaluation: the loss, likelihoods that keep their meaning, the best checkpoint."""

from __future__ import annotations

import math

import pytest
import torch
import yaml

pytest.importorskip("axolotl")

from support import oracle
from support.axolotl_runs import by_hand, evaluate, prepare, train, write_config

from dft_axolotl.host import AxolotlHost

pytestmark = pytest.mark.host

EVALUATION = {"val_set_size": 0.25, "eval_steps": 1, "eval_strategy": "steps"}


@pytest.mark.newest
def test_perplexities_are_those_of_the_likelihood(home):
    run = train(write_config(home, **EVALUATION))
    for entry in run.logs:
        assert entry["ppl"] == pytest.approx(math.exp(entry["dft/nll"]), rel=1e-9)
        assert entry["ppl"] > 2 * math.exp(entry["loss"]), "the loss is far below the likelihood here"
    for entry in run.evaluations:
        assert entry["eval_ppl"] == pytest.approx(math.exp(entry["eval_dft/nll"]), rel=1e-9)


def test_loggers_see_the_true_perplexity_too(home):
    from transformers import TrainerCallback

    seen = []

    class Logger(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    _, trainer = prepare(write_config(home, **EVALUATION, max_steps=1))
    # Where the reporters of `report_to` stand, before the callbacks that are added later.
    trainer.callback_handler.callbacks.insert(1, Logger())
    trainer.train()
    (train_log,) = [logs for logs in seen if "ppl" in logs]
    assert train_log["ppl"] == train_log["dft/perplexity"]
    eval_log, *_ = [logs for logs in seen if "eval_ppl" in logs]
    assert eval_log["eval_ppl"] == eval_log["eval_dft/perplexity"]
    evaluated = trainer.evaluate()
    assert evaluated["eval_ppl"] == evaluated["eval_dft/perplexity"]


@pytest.mark.newest
def test_eval_loss_is_the_configured_loss(home):
    _, trainer = prepare(write_config(home, **EVALUATION, eval_batch_size=64))
    (batch,) = trainer.get_eval_dataloader()
    total, count, _ = by_hand(trainer.model, batch)
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    nll = oracle.loss(logits[:, :-1], batch["labels"][:, 1:], oracle.nll).item()
    evaluated = trainer.evaluate()
    assert evaluated["eval_loss"] == pytest.approx(total / count, rel=1e-6)
    assert evaluated["eval_dft/nll"] == pytest.approx(nll, rel=1e-6)
    assert evaluated["eval_dft/tokens"] == count


@pytest.mark.newest
def test_axolotl_evaluate_evaluates_the_configured_loss(home):
    """Its command makes a trainer that it shows to no plugin after that."""
    path = write_config(home, val_set_size=0.25, eval_batch_size=64, micro_batch_size=64, loss={"alpha": 0.5})
    metrics = evaluate(path)
    _, trainer = prepare(path)
    assert metrics["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-6)
    assert metrics["eval_loss"] < 0.5 * metrics["eval_dft/nll"]
    assert metrics["eval_ppl"] == metrics["eval_dft/perplexity"]
    assert metrics["train_loss"] < 0.5 * metrics["train_dft/nll"]
    summary = (home / "out" / "config.yml" / "eval_summary.csv").read_text()
    assert f"loss,{metrics['train_loss']},{metrics['eval_loss']}" in summary


def test_the_best_checkpoint_and_early_stopping_can_go_by_the_likelihood(home):
    run = train(
        write_config(
            home,
            **EVALUATION,
            max_steps=8,
            learning_rate=30.0,
            save_strategy="steps",
            save_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_dft/nll",
            greater_is_better=False,
            early_stopping_patience=2,
        )
    )
    nll = {entry["step"]: entry["eval_dft/nll"] for entry in run.evaluations if entry["step"]}
    state = run.trainer.state
    assert state.best_metric == min(nll.values())
    assert nll[state.best_global_step] == state.best_metric
    assert max(nll) == state.best_global_step + 2 < 8, "it was meant to get worse, and to be stopped"


BEST = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 2}


@pytest.mark.newest
@pytest.mark.parametrize(
    "changes",
    [
        BEST,
        {**BEST, "load_best_model_at_end": False},
        {**BEST, "load_best_model_at_end": None},
        {**BEST, "save_steps": 3, "eval_steps": 2},
        {**BEST, "num_epochs": 3, "saves_per_epoch": 1, "evals_per_epoch": 4, "eval_steps": None, "save_steps": None},
        {**BEST, "val_set_size": 0, "eval_strategy": None, "eval_steps": None},
        {**BEST, "load_best_model_at_end": None, "early_stopping_patience": 2},
    ],
    ids=["asked for", "turned off", "by default", "out of step", "per epoch", "nothing held out", "early stopping"],
)
def test_whether_the_best_checkpoint_is_loaded_is_known_from_the_yaml(changes, home):
    config = {**EVALUATION, **changes}
    path = write_config(home, drop=[key for key, value in config.items() if value is None], **config)
    _, trainer = prepare(path)
    found = AxolotlHost().chooses_by(yaml.safe_load(path.read_text()))
    assert trainer.args.load_best_model_at_end is (found is not None)


def test_axolotls_own_perplexity_metric_still_sees_cross_entropy(home):
    from axolotl.utils.callbacks.perplexity import Perplexity

    from dft_plugin.hf.attachment import Attachment

    _, trainer = prepare(write_config(home))
    text = ["word1 word2 word3 word4 word5"]
    ids = trainer.processing_class(text, return_tensors="pt")["input_ids"]
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(input_ids=ids).logits
    assert isinstance(trainer.model.forward, Attachment)
    score = Perplexity(trainer.processing_class, 128).compute(trainer.model, text)["score"]
    assert score == pytest.approx(oracle.loss(logits[:, :-1], ids[:, 1:], oracle.nll).exp().item(), rel=1e-5)
