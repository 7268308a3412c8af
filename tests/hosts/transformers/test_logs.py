"""What a plain Trainer logs beside the loss, in training and in evaluation."""

from __future__ import annotations

import logging

import pytest
import torch
from datasets import Dataset
from support import oracle, training
from transformers import TrainerCallback

from dft_plugin import activate

pytestmark = pytest.mark.host

KEYS = {
    "dft/loss",
    "dft/nll",
    "dft/perplexity",
    "dft/mean_prob",
    "dft/mean_weight",
    "dft/effective_tokens",
    "dft/tokens",
    "dft/low_weight_share",
}


class Reporter(TrainerCallback):
    """What TensorBoard, Weights & Biases and the like get."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def test_start_up_line_says_what_is_on(tmp_path, capsys):
    activate(training.trainer(tmp_path), {"name": "dft", "alpha": 0.5})
    assert capsys.readouterr().err == (
        "dft: loss dft(alpha=0.5, floor=0.0) is on for LlamaForCausalLM (Trainer): kernel chunked\n"
    )


def test_statistics_of_a_step_equal_the_float64_ones(tmp_path):
    trainer = training.trainer(tmp_path, max_steps=1, gradient_accumulation_steps=2)
    loader = iter(trainer.get_train_dataloader())
    nll = torch.cat(
        [
            oracle.token_losses(trainer.model(**{**b, "labels": None}).logits[:, :-1], b["labels"][:, 1:], oracle.nll)
            for b in (next(loader), next(loader))
        ]
    )
    nll = nll.detach()
    p = (-nll).exp()
    activate(trainer)
    trainer.train()
    (logged,) = training.train_logs(trainer)
    assert logged.keys() >= KEYS
    assert logged["dft/tokens"] == nll.numel()
    assert logged["dft/nll"] == pytest.approx(float(nll.mean()), rel=1e-6)
    assert logged["dft/perplexity"] == pytest.approx(float(nll.mean().exp()), rel=1e-6)
    assert logged["dft/mean_prob"] == pytest.approx(float(p.mean()), rel=1e-6)
    assert logged["dft/effective_tokens"] == pytest.approx(float(p.sum() ** 2 / p.square().sum()), rel=1e-5)
    assert logged["dft/loss"] == pytest.approx(float((p * nll).mean()), rel=1e-6)
    assert training.losses(trainer) == [pytest.approx(logged["dft/loss"], rel=1e-6)]


def test_every_reporter_and_the_log_history_get_the_statistics(tmp_path):
    trainer = training.trainer(tmp_path)
    reporter = Reporter()
    trainer.add_callback(reporter)
    activate(trainer)
    trainer.train()
    assert [logs.keys() >= KEYS for logs in reporter.seen] == [True, True, True, False]
    assert [logs.keys() >= KEYS for logs in trainer.state.log_history] == [True, True, True, False]


def test_evaluation_logs_the_statistics_of_the_whole_set(tmp_path):
    trainer = training.trainer(tmp_path, eval_strategy="steps", eval_steps=1, max_steps=1)
    activate(trainer)
    trainer.train()
    batch = training.collate(training.rows(10, seed=1))
    trainer.model.eval()
    logits = trainer.model(**{**batch, "labels": None}).logits
    nll = oracle.token_losses(logits[:, :-1], batch["labels"][:, 1:], oracle.nll).detach()
    (logged,) = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert {f"eval_{key}" for key in KEYS} <= logged.keys()
    assert logged["eval_dft/nll"] == pytest.approx(float(nll.mean()), rel=1e-6)
    assert logged["eval_dft/tokens"] == nll.numel()


def test_evaluate_returns_the_statistics_so_that_a_best_model_can_be_chosen_by_nll(tmp_path):
    trainer = training.trainer(
        tmp_path,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_dft/nll",
        greater_is_better=False,
    )
    activate(trainer)
    trainer.train()
    assert trainer.state.best_metric == min(
        entry["eval_dft/nll"] for entry in trainer.state.log_history if "eval_loss" in entry
    )


def test_compute_metrics_gets_the_stock_logits(tmp_path):
    seen = {}

    def metrics(prediction):
        seen[len(seen)] = torch.tensor(prediction.predictions)
        return {}

    stock = training.trainer(tmp_path, compute_metrics=metrics)
    stock.evaluate()
    ours = training.trainer(tmp_path, compute_metrics=metrics)
    activate(ours)
    ours.evaluate()
    assert torch.equal(seen[0], seen[1])


def test_a_weak_prior_is_warned_of_once(tmp_path, caplog):
    trainer = training.trainer(tmp_path)
    activate(trainer)
    with caplog.at_level(logging.WARNING, logger="dft_plugin.hf.first_log"):
        trainer.train()
    (record,) = caplog.records
    assert "mean probability is 0.0" in record.message
    assert "`loss: nll`" in record.message
    assert "`dft probe CONFIG`" in record.message


def test_a_run_without_any_target_is_warned_of_once(tmp_path, caplog):
    trainer = training.trainer(tmp_path)
    trainer.train_dataset = Dataset.from_list(
        [{**row, "labels": [-100] * len(row["labels"])} for row in training.rows()]
    )
    activate(trainer)
    with caplog.at_level(logging.WARNING, logger="dft_plugin.hf.first_log"):
        trainer.train()
    (record,) = caplog.records
    assert "every label is -100, and nothing is learned" in record.message


def test_a_loss_that_takes_no_token_is_warned_of_once(tmp_path, caplog):
    trainer = training.trainer(tmp_path)
    activate(trainer, {"name": "profit", "threshold": 0.9})
    with caplog.at_level(logging.WARNING, logger="dft_plugin.hf.first_log"):
        trainer.train()
    (record,) = caplog.records
    assert "no token has had a weight above 0 in the steps up to 1: nothing is trained by profit" in record.message


def test_someone_elses_labelled_call_gets_cross_entropy(tmp_path):
    stock = training.trainer(tmp_path)
    batch = training.collate(training.rows(3))
    expected = stock.model(**batch).loss.item()
    activate(stock)
    assert stock.model(**batch).loss.item() == expected


@pytest.mark.parametrize("loss", ["dft", "eaft"])
def test_accuracy_and_entropy_are_logged_on_demand(tmp_path, loss):
    trainer = training.trainer(tmp_path)
    activate(trainer, {"name": loss, "log": ["top1", "entropy"]})
    metrics = trainer.evaluate()
    hits, entropy, tokens = 0, 0.0, 0
    for row in trainer.eval_dataset:
        batch = training.collate([row])
        with torch.no_grad():
            logits = type(trainer.model).forward(trainer.model, batch["input_ids"], batch["attention_mask"]).logits
        labels = batch["labels"][0, 1:]
        logp = logits[0, :-1].double().log_softmax(-1)[labels != -100]
        hits += int((logp.argmax(-1) == labels[labels != -100]).sum())
        entropy += float(-(logp.exp() * logp).sum())
        tokens += len(logp)
    assert metrics["eval_dft/top1"] == pytest.approx(hits / tokens)
    assert metrics["eval_dft/entropy"] == pytest.approx(entropy / tokens, rel=1e-5)
