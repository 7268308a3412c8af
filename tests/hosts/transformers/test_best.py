"""Which checkpoint is best: by what a statistic is, in the best model, early stopping and the learning rate."""

from __future__ import annotations

import pytest
import torch
from support import training
from transformers import EarlyStoppingCallback

from dft_plugin import activate
from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host

EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
BEST = {**EVALUATED, "load_best_model_at_end": True}


def history(trainer, key):
    return {entry["step"]: entry[key] for entry in trainer.state.log_history if key in entry}


@pytest.mark.parametrize(
    ("metric", "lowest"),
    [("eval_dft/nll", True), ("dft/perplexity", True), ("eval_dft/loss", True), ("dft/mean_prob", False)],
)
def test_the_best_model_is_that_of_the_right_end(metric, lowest, tmp_path, capsys):
    """The rate is so large that the model gets better and worse."""
    trainer = training.trainer(tmp_path, max_steps=6, learning_rate=8.0, metric_for_best_model=metric, **BEST)
    activate(trainer)
    trainer.train()
    key = metric if metric.startswith("eval_") else f"eval_{metric}"
    values = history(trainer, key)
    assert trainer.state.best_metric == (min if lowest else max)(values.values())
    assert values[trainer.state.best_global_step] == trainer.state.best_metric
    assert len(set(values.values())) > 1
    corrected = metric in ("eval_dft/nll", "dft/perplexity")
    assert (f"greater_is_better (the lowest {metric} is the best)" in capsys.readouterr().err) is corrected


def test_a_metric_of_one_of_several_sets(tmp_path):
    trainer = training.trainer(
        tmp_path, max_steps=4, learning_rate=8.0, metric_for_best_model="eval_b_dft/nll", **BEST
    )
    trainer.eval_dataset = {"a": trainer.eval_dataset.select(range(5)), "b": trainer.eval_dataset.select(range(5, 10))}
    activate(trainer)
    trainer.train()
    assert trainer.state.best_metric == min(history(trainer, "eval_b_dft/nll").values())


def test_early_stopping_goes_the_right_way(tmp_path):
    trainer = training.trainer(tmp_path, max_steps=8, learning_rate=60.0, metric_for_best_model="eval_dft/nll", **BEST)
    trainer.add_callback(EarlyStoppingCallback(2))
    activate(trainer)
    trainer.train()
    values = history(trainer, "eval_dft/nll")
    assert max(values) == trainer.state.best_global_step + 2 < 8


@pytest.mark.parametrize(("metric", "mode"), [("eval_dft/nll", "min"), ("eval_dft/mean_prob", "max")])
def test_a_learning_rate_that_follows_plateaus_goes_the_right_way(metric, mode, tmp_path):
    given = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": metric}
    trainer = training.trainer(tmp_path, max_steps=1, **EVALUATED, **given)
    before = dict(trainer.args.lr_scheduler_kwargs or {})
    attachment = activate(trainer)
    trainer.train()
    assert trainer.lr_scheduler.mode == mode
    attachment.detach()
    assert dict(trainer.args.lr_scheduler_kwargs or {}) == before


def test_what_somebody_asked_for_explicitly_and_wrongly_is_refused(tmp_path):
    mistakes = {
        "metric_for_best_model": "eval_dft/mean_prob",
        "greater_is_better": False,
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"mode": "min"},
    }
    trainer = training.trainer(tmp_path, **BEST, **mistakes)
    with pytest.raises(ConflictError) as caught:
        activate(trainer)
    assert caught.value.problems == (
        "`greater_is_better: false`: for `metric_for_best_model: eval_dft/mean_prob`, higher is better. Set "
        "`greater_is_better: true`.",
        "the learning rate follows eval_dft/mean_prob with mode min, and for it max is right. Set "
        "`lr_scheduler_kwargs: {mode: max}`, or leave the mode out.",
    )


def test_a_scheduler_of_ones_own_with_the_wrong_mode_is_refused(tmp_path):
    trainer = training.trainer(tmp_path, **EVALUATED, metric_for_best_model="eval_dft/mean_prob")
    optimizer = torch.optim.SGD(trainer.model.parameters(), 0.1)
    trainer.optimizer = optimizer
    trainer.lr_scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(ConflictError, match=r"for it max is right\. Make the ReduceLROnPlateau .*with mode=\"max\""):
        activate(trainer)
    trainer.lr_scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max")
    activate(trainer)


@pytest.mark.parametrize("metric", ["eval_dft/nll", "eval_dft/mean_prob", None])
def test_a_scheduler_whose_mode_means_something_else_follows_no_evaluation(metric, tmp_path, capsys):
    trainer = training.trainer(tmp_path, **EVALUATED, metric_for_best_model=metric)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), 0.1)
    trainer.lr_scheduler = torch.optim.lr_scheduler.CyclicLR(trainer.optimizer, 0.01, 0.1)
    activate(trainer)
    assert HINT not in capsys.readouterr().err


@pytest.mark.parametrize("again", ["dft", pytest.param("nll", marks=pytest.mark.full)])
@pytest.mark.parametrize("plateau", [False, True])
def test_a_metric_that_was_changed_is_followed_from_the_next_activate_on(again, plateau, tmp_path):
    scheduler = {"lr_scheduler_type": "reduce_lr_on_plateau"} if plateau else {}
    trainer = training.trainer(tmp_path, metric_for_best_model="eval_dft/nll", **EVALUATED, **scheduler)
    given = trainer.args.greater_is_better
    activate(trainer, "dft")
    trainer.train()
    for metric, right in [("eval_dft/mean_prob", True), ("eval_dft/nll", False), ("eval_dft/mean_prob", True)]:
        trainer.args.metric_for_best_model = metric
        attachment = activate(trainer, again)
        assert trainer.args.greater_is_better is right
        trainer.train()
        if plateau:
            assert trainer.lr_scheduler.mode == ("max" if right else "min")
    attachment.detach()
    assert trainer.args.greater_is_better is given
    assert "mode" not in (trainer.args.lr_scheduler_kwargs or {})


def test_a_wrong_metric_is_refused_by_the_same_loss_again(tmp_path):
    trainer = training.trainer(tmp_path, metric_for_best_model="eval_dft/nll", **BEST)
    activate(trainer)
    trainer.args.metric_for_best_model = "eval_dft/tokens"
    with pytest.raises(ConflictError, match="has no better or worse"):
        activate(trainer)


@pytest.mark.parametrize("metric", ["dft/tokens", "eval_dft/effective_tokens", "eval_a_dft/mean_weight", "dft/nlll"])
def test_what_has_no_direction_cannot_choose(metric, tmp_path):
    trainer = training.trainer(tmp_path, metric_for_best_model=metric, **BEST)
    with pytest.raises(ConflictError) as caught:
        activate(trainer)
    text = str(caught.value)
    assert text.startswith(f"`metric_for_best_model: {metric}` ")
    prefix = "eval_a_" if "eval_a_" in metric else "eval_"
    assert f"so it cannot choose a checkpoint. Use `{prefix}dft/nll` with `greater_is_better: false`, or one" in text


HINT = "the weighted loss. A token's -p log p rises with p below p = 1/e"


@pytest.mark.parametrize(
    "choice",
    [
        BEST,
        {**BEST, "metric_for_best_model": "eval_dft/loss"},
        {**EVALUATED, "save_strategy": "best", "metric_for_best_model": "loss"},
        {**EVALUATED, "lr_scheduler_type": "reduce_lr_on_plateau"},
    ],
    ids=["best", "dft/loss", "save_strategy", "plateau"],
)
def test_a_choice_by_the_weighted_loss_is_explained(choice, tmp_path, capsys):
    activate(training.trainer(tmp_path, **choice))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("dft: loss dft(")
    assert HINT in second
    assert "`metric_for_best_model: eval_dft/nll`" in second


@pytest.mark.parametrize("loss", ["nll", {"name": "dft", "alpha": 0}, {"name": "dft", "floor": 1}], ids=str)
def test_a_loss_that_weighs_nothing_needs_no_explanation(loss, tmp_path, capsys):
    activate(training.trainer(tmp_path, **BEST), loss)
    assert HINT not in capsys.readouterr().err


def test_nothing_is_said_where_a_metric_is_named_and_nobody_evaluates(tmp_path, capsys):
    """As ms-swift does."""
    activate(training.trainer(tmp_path, metric_for_best_model="loss"), "dft")
    assert HINT not in capsys.readouterr().err


def test_nothing_is_said_where_nothing_is_chosen(tmp_path, capsys):
    activate(training.trainer(tmp_path, **EVALUATED))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_metric_of_somebody_elses_is_left_alone(tmp_path):
    trainer = training.trainer(tmp_path, **BEST, metric_for_best_model="bleu", greater_is_better=False)
    activate(trainer)
    assert trainer.args.greater_is_better is False
