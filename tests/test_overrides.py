"""Words of a command line that reach into what stands after `loss:`."""

from __future__ import annotations

import pytest

from dft_plugin.config.reading import with_option


@pytest.mark.parametrize(
    ("before", "words", "after"),
    [
        (
            {"name": "dft", "alpha": 0.7},
            [("loss.alpha.from", 0), ("loss.alpha.to", 1), ("loss.alpha.until", 0.3)],
            {"name": "dft", "alpha": {"from": 0, "to": 1, "until": 0.3}},
        ),
        ("dft", [("loss.weights.column", "ratio")], {"name": "dft", "weights": {"column": "ratio"}}),
        ({"first": "nll"}, [("loss.first.for", 3)], {"first": {"name": "nll", "for": 3}}),
        (None, [("loss.first.name", "nll"), ("loss.first.for", 3)], {"first": {"name": "nll", "for": 3}}),
        (None, [("loss.alpha", 0.5)], {"alpha": 0.5}),
    ],
)
def test_an_override_reaches_into_what_stands_there(before, words, after):
    for key, value in words:
        before = with_option(before, key, value)
    assert before == after
