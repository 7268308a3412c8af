"""Advice follows from numbers, by one table of thresholds; each says why, with its number and source."""

import pytest

from dft_plugin.config import advice
from dft_plugin.config.files import parse_yaml
from dft_plugin.config.plugins import build_catalogue

PLAIN = {"mean_prob": 0.7, "surprise": 0.0, "conflict_share": 0.0, "unknown_share": 0.0, "repeated_share": 0.0}


def first(**changes):
    return advice.advise({**PLAIN, **changes})[0]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, "dft"),
        ({"mean_prob": 0.3}, "{name: dft, alpha: 0.5}"),
        ({"mean_prob": 0.05}, "nll"),
        ({"mean_prob": 0.05, "surprise": 8.0}, "nll"),
        ({"mean_prob": 0.3, "unknown_share": 0.5}, "nll"),
        ({"mean_prob": 0.4, "conflict_share": 0.2}, "eaft"),
        ({"mean_prob": 0.4, "conflict_share": 0.2, "eos_tokens": 50, "eos_prob": 0.001}, "eaft"),
        ({"eos_tokens": 50, "eos_prob": 0.001}, "{name: dft, always_learn: [eos]}"),
        (
            {"mean_prob": 0.3, "eos_tokens": 50, "eos_prob": 0.01, "added_tokens": 9, "added_prob": 0.0},
            "{name: dft, alpha: 0.5, always_learn: [eos, added]}",
        ),
        ({"eos_tokens": 2, "eos_prob": 0.001}, "dft"),
        ({"mean_prob": 0.05, "eos_tokens": 50, "eos_prob": 0.001}, "nll"),
    ],
)
def test_what_is_advised(changes, what):
    found = first(**changes)
    assert found.what == what
    assert found.is_loss
    assert found.source


@pytest.mark.parametrize("p", [0.001, 0.0999, 0.1, 0.3, 0.4999, 0.5, 0.9])
@pytest.mark.parametrize("eos", [0.0, 0.9])
def test_what_is_advised_is_a_loss_that_this_package_takes(p, eos):
    what = first(mean_prob=p, eos_tokens=50, eos_prob=eos).what
    assert build_catalogue().settings(parse_yaml(what, "loss"))


def test_reasons_hold_the_numbers_that_they_turn_on():
    assert "0.052" in first(mean_prob=0.0521).why
    assert "52%" in first(mean_prob=0.3, unknown_share=0.52).why
    assert "0.007, 50 tokens" in first(eos_tokens=50, eos_prob=0.007).why
    assert "not text" in first(mean_prob=0.05, surprise=8.0).why


def test_repeated_rows_are_said_beside_it():
    every = advice.advise({**PLAIN, "repeated_share": 0.4})
    assert [one.is_loss for one in every] == [True, False]
    assert "40%" in every[1].why


def test_another_threshold_is_another_advice(monkeypatch):
    monkeypatch.setattr(advice, "STRONG_PRIOR", advice.Threshold(0.2, "later evidence"))
    assert first(mean_prob=0.3).what == "dft"
    assert first(mean_prob=0.3).source == "later evidence"


def test_a_handful_of_targets_is_said_to_be_few():
    every = advice.advise({**PLAIN, "tokens": 24, "rows": 2})
    assert every[1].why == "24 targets of 2 rows are few: what stands above may be chance"
    assert len(advice.advise({**PLAIN, "tokens": 400, "rows": 2})) == 1
