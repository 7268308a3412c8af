"""Which statistic may choose the best checkpoint, and what a choice by the loss means."""

from __future__ import annotations

import math

import pytest
import torch

from dft_plugin.config.best import DIRECTIONS, advice
from dft_plugin.core.stats import LossStats, Sum

LOGGED = list(LossStats(torch.ones(len(Sum), dtype=torch.float64)).as_logs())


def test_each_direction_is_of_a_statistic_that_is_logged():
    assert set(DIRECTIONS) <= set(LOGGED)
    assert set(DIRECTIONS.values()) == {"lower", "higher"}


def test_likelihoods_have_a_direction_and_counts_have_none():
    assert DIRECTIONS["dft/loss"] == DIRECTIONS["dft/nll"] == DIRECTIONS["dft/perplexity"] == "lower"
    assert DIRECTIONS["dft/mean_prob"] == "higher"
    assert not {"dft/tokens", "dft/effective_tokens", "dft/mean_weight", "dft/low_weight_share"} & DIRECTIONS.keys()


@pytest.mark.parametrize("metric", ["dft/nll", "eval_dft/nll", "eval_math_dft/nll", "eval_a-set.1_dft/nll"])
@pytest.mark.parametrize("greater", [None, False])
def test_the_likelihood_may_choose(metric, greater):
    assert advice(metric, greater, weighted=True) == ([], [])


@pytest.mark.parametrize(
    ("metric", "greater", "direction", "right"),
    [("eval_dft/nll", True, "lower", "false"), ("dft/mean_prob", False, "higher", "true")],
)
def test_the_wrong_direction_is_a_problem_that_names_the_right_one(metric, greater, direction, right):
    (problem,), hints = advice(metric, greater, weighted=True)
    assert problem == (
        f"`greater_is_better: {str(greater).lower()}`: for `metric_for_best_model: {metric}`, {direction} is better. "
        f"Set `greater_is_better: {right}`."
    )
    assert hints == []


@pytest.mark.parametrize("key", [key for key in LOGGED if key not in DIRECTIONS])
@pytest.mark.parametrize("greater", [None, False, True])
def test_a_statistic_without_a_direction_is_a_problem(key, greater):
    (problem,), _ = advice(f"eval_{key}", greater, weighted=True)
    assert problem.startswith(f"`metric_for_best_model: eval_{key}` has no better or worse")
    assert "Use `eval_dft/nll` with `greater_is_better: false`" in problem


def test_a_statistic_of_one_of_several_held_out_sets_is_known():
    assert advice("eval_math_dft/tokens", None, weighted=True)[0]
    assert advice("eval_math_dft/nll", True, weighted=True)[0]


@pytest.mark.parametrize("metric", [None, "loss", "eval_loss", "eval_math_loss", "eval_dft/loss"])
def test_under_a_weighted_loss_a_choice_by_it_is_explained(metric):
    problems, (hint,) = advice(metric, None, weighted=True)
    assert problems == []
    assert "-p log p rises with p below p = 1/e" in hint
    assert "`metric_for_best_model: eval_dft/nll` and `greater_is_better: false`" in hint
    assert advice(metric, None, weighted=False) == ([], [])


def test_what_the_hint_says_of_the_loss():
    def loss(p):
        return -p * math.log(p)

    assert loss(0.1) < loss(0.2) < loss(1 / math.e) > loss(0.5) > loss(0.9)


@pytest.mark.parametrize("greater", [None, True, False])
def test_a_metric_of_someone_else_is_left_alone(greater):
    assert advice("eval_accuracy", greater, weighted=True) == ([], [])
