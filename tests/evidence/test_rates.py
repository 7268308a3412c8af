"""The rule for learning rates, as it was written down before the first run."""

from __future__ import annotations

from evidence.rates import Tried, chosen, missing


def rates(**found):
    names = {"low": 3e-4, "middle": 1e-3, "high": 3e-3, "lower": 1e-4, "higher": 1e-2}
    return {names[name]: Tried(*value) for name, value in found.items()}


def test_three_are_tried_first():
    assert missing({}) == [3e-4, 1e-3, 3e-3]
    assert missing(rates(low=(0.5, 0.5))) == [1e-3, 3e-3]
    assert chosen(rates(low=(0.5, 0.5))) is None


def test_a_best_in_the_middle_is_taken():
    found = rates(low=(0.5, 0.9), middle=(0.8, 0.1), high=(0.6, 0.2))
    assert missing(found) == []
    assert chosen(found) == 1e-3


def test_a_best_at_an_end_asks_for_one_step_further_and_no_more():
    found = rates(low=(0.5, 0.5), middle=(0.6, 0.5), high=(0.8, 0.5))
    assert missing(found) == [1e-2]
    assert chosen(found) is None
    found = {**found, **rates(higher=(0.9, 0.5))}
    assert missing(found) == []
    assert chosen(found) == 1e-2


def test_of_rates_within_half_a_point_the_smallest_is_taken():
    found = rates(low=(0.790, 0.5), middle=(0.796, 0.5), high=(0.8, 0.5))
    assert chosen(found) == 1e-3


def test_where_nothing_is_reached_the_probability_of_right_answers_decides():
    found = rates(low=(0.04, 0.2), middle=(0.0, 0.6), high=(0.03, 0.3))
    assert chosen(found) == 1e-3
