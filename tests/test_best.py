"""Which way each statistic is better, and what a config that chooses by one is told."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dft_plugin.config import best
from dft_plugin.core.statistics import DIRECTIONS
from dft_plugin.core.stats import LossStats, Sum


def test_every_logged_key_declares_its_direction():
    logged = LossStats(torch.ones(len(Sum), dtype=torch.float64)).as_logs()
    assert list(logged) == list(DIRECTIONS)
    assert {key for key, better in DIRECTIONS.items() if better == "lower"} == {
        "dft/loss",
        "dft/nll",
        "dft/perplexity",
    }
    assert {key for key, better in DIRECTIONS.items() if better == "higher"} == {"dft/mean_prob", "dft/eos_prob"}


@pytest.mark.parametrize("prefix", ["", "eval_", "eval_my_set_"])
def test_a_metric_is_known_by_what_it_is_called_without_its_prefix(prefix):
    assert best.statistic(f"{prefix}dft/nll") == "dft/nll"
    assert best.greater_is_better(f"{prefix}dft/mean_prob") is True
    assert best.greater_is_better(f"{prefix}dft/nll") is False
    assert best.greater_is_better(f"{prefix}dft/tokens") is None


@pytest.mark.parametrize("metric", ["loss", "eval_loss", "eval_bleu", "", "dft", "eval_my/dft/nll", "dft/nll/x"])
def test_what_is_not_ours_is_left_to_the_host(metric):
    assert best.statistic(metric) is None
    assert best.greater_is_better(metric) is None
    assert best.advice(metric, True, weighted=False) == ([], [])


@pytest.mark.parametrize(("metric", "right"), [("dft/nll", False), ("eval_dft/mean_prob", True)])
def test_an_explicit_wrong_direction_is_a_problem_and_the_right_one_or_none_is_not(metric, right):
    for asked in (None, right):
        assert best.advice(metric, asked, weighted=True) == ([], [])
    (problem,), hints = best.advice(metric, not right, weighted=True)
    assert problem.endswith(f"Set `greater_is_better: {str(right).lower()}`, or leave it out.")
    assert hints == []


def test_what_has_no_direction_names_those_that_have():
    (problem,), _ = best.advice("eval_dft/tokens", None, weighted=True)
    assert problem == (
        "`metric_for_best_model: eval_dft/tokens` has no better or worse, so it cannot choose a checkpoint. Use "
        "`eval_dft/nll` (the likelihood), or one of `eval_dft/loss`, `eval_dft/nll`, `eval_dft/perplexity`, "
        "`eval_dft/mean_prob`, `eval_dft/eos_prob`."
    )


@pytest.mark.parametrize("metric", [None, "loss", "eval_loss", "eval_a_loss", "eval_dft/loss"])
def test_the_weighted_loss_as_a_choice_is_explained_and_the_likelihood_is_not(metric):
    problems, (hint,) = best.advice(metric, None, weighted=True)
    assert problems == []
    assert "p = 1/e" in hint
    assert hint.endswith("`metric_for_best_model: eval_dft/nll`.")
    assert best.advice(metric, None, weighted=False) == ([], [])


def test_what_the_hint_says_is_so():
    """-p log p has its maximum at 1/e: below it the loss of a token rises as the token gets likelier."""
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    loss = -p * p.log()
    rising = loss[1:] > loss[:-1]
    assert rising[p[1:] < 1 / torch.e].all()
    assert not rising[p[:-1] > 1 / torch.e].any()


def test_the_check_needs_no_torch():
    code = "import sys, dft_plugin.config.best; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
