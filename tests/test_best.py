"""Which statistic may choose the best checkpoint, and what a choice by the loss means."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from dft_plugin.config.best import advice, greater_is_better, statistic
from dft_plugin.core.statistics import DIRECTIONS
from dft_plugin.core.stats import LossStats, Sum
from dft_plugin.objectives.adjusted import DATA_WEIGHT, EXEMPT_PROB, EXEMPT_SHARE


def test_every_logged_key_declares_its_direction():
    names = (EXEMPT_SHARE, EXEMPT_PROB, DATA_WEIGHT, "top1", "entropy")
    sums = torch.ones(len(Sum) + 2 * len(names), dtype=torch.float64)
    assert list(LossStats(sums, names).as_logs()) == list(DIRECTIONS)
    by_direction = {better: {key for key in DIRECTIONS if DIRECTIONS[key] == better} for better in DIRECTIONS.values()}
    assert by_direction == {
        "lower": {"dft/loss", "dft/nll", "dft/perplexity"},
        "higher": {"dft/mean_prob", "dft/eos_prob", "dft/always_learn_prob", "dft/top1"},
        None: {
            "dft/tokens",
            "dft/effective_tokens",
            "dft/mean_weight",
            "dft/low_weight_share",
            "dft/always_learn_share",
            "dft/data_weight",
            "dft/entropy",
        },
    }


@pytest.mark.parametrize("prefix", ["", "eval_", "eval_my_set_"])
def test_a_metric_is_known_by_what_it_is_called_without_its_prefix(prefix):
    assert statistic(f"{prefix}dft/nll") == "dft/nll"
    assert greater_is_better(f"{prefix}dft/mean_prob") is True
    assert greater_is_better(f"{prefix}dft/nll") is False
    assert greater_is_better(f"{prefix}dft/tokens") is None


@pytest.mark.parametrize("metric", ["loss", "eval_loss", "eval_bleu", "", "dft", "eval_my/dft/nll", "dft/nll/x"])
def test_what_is_not_ours_is_known_as_such(metric):
    assert statistic(metric) is None
    assert greater_is_better(metric) is None


def test_a_mistyped_statistic_is_said_to_be_none():
    (problem,), _ = advice("eval_dft/nlll", None, weighted=False)
    assert problem.startswith("`metric_for_best_model: eval_dft/nlll` is not a statistic of ours")


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


@pytest.mark.parametrize("key", [key for key, better in DIRECTIONS.items() if better is None])
@pytest.mark.parametrize("greater", [None, False, True])
def test_a_statistic_without_a_direction_is_a_problem(key, greater):
    (problem,), _ = advice(f"eval_{key}", greater, weighted=True)
    assert problem.startswith(f"`metric_for_best_model: eval_{key}` has no better or worse")
    assert "Use `eval_dft/nll` with `greater_is_better: false`" in problem


def test_a_statistic_of_one_of_several_held_out_sets_is_known():
    (problem,), _ = advice("eval_math_dft/tokens", None, weighted=True)
    assert "Use `eval_math_dft/nll` with" in problem
    assert "`eval_math_dft/mean_prob`" in problem
    assert advice("eval_math_dft/nll", True, weighted=True)[0]


@pytest.mark.parametrize("metric", [None, "loss", "eval_loss", "eval_math_loss", "eval_dft/loss"])
def test_under_a_weighted_loss_a_choice_by_it_is_explained(metric):
    problems, (hint,) = advice(metric, None, weighted=True)
    assert problems == []
    assert "-p log p rises with p below p = 1/e" in hint
    prefix = "eval_math_" if metric == "eval_math_loss" else "eval_"
    assert f"`metric_for_best_model: {prefix}dft/nll` and `greater_is_better: false`" in hint
    assert advice(metric, None, weighted=False) == ([], [])


def test_what_the_hint_says_of_the_loss():
    def loss(p):
        return -p * math.log(p)

    assert loss(0.1) < loss(0.2) < loss(1 / math.e) > loss(0.5) > loss(0.9)


@pytest.mark.parametrize("greater", [None, True, False])
def test_a_metric_of_someone_else_is_left_alone(greater):
    assert advice("eval_accuracy", greater, weighted=True) == ([], [])


def test_the_check_needs_no_torch():
    code = "import sys, dft_plugin.config.best; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
