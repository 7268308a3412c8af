"""Numbers about numbers, against values worked out elsewhere."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from evidence.intervals import half_width, paired, pass_at
from evidence.measures import calibration_error

torch = pytest.importorskip("torch")


def test_a_half_width_is_that_of_a_table_of_students_t():
    """Five values of mean 3 and standard deviation sqrt(2.5): t of 4 degrees of freedom is 2.776."""
    assert half_width([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5))
    assert half_width([1.0, 2.0]) == pytest.approx(12.706 * 0.5, rel=1e-4)


def test_one_value_has_no_interval():
    assert math.isinf(half_width([1.0]))


def test_equal_differences_have_no_width_however_the_pairs_vary():
    difference, half = paired([0.5, 0.9, 0.1], [0.25, 0.65, -0.15])
    assert difference == pytest.approx(0.25)
    assert half == pytest.approx(0.0, abs=1e-12)


def test_pairs_of_different_lengths_are_none():
    with pytest.raises(ValueError, match="shorter"):
        paired([1.0, 2.0], [1.0])


@pytest.mark.parametrize("right", [0, 1, 3, 6])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_pass_at_k_is_the_share_of_the_choices_that_hold_a_right_one(k, right):
    choices = list(combinations([True] * right + [False] * (6 - right), k))
    assert pass_at(k, 6, right) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_the_error_of_calibration_is_zero_for_a_model_that_is_as_sure_as_it_is_right():
    sure = torch.tensor([0.75] * 4 + [1.0])
    assert calibration_error(sure, torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])) == pytest.approx(0.0, abs=1e-6)


def test_the_error_of_calibration_weighs_each_bin_by_its_tokens():
    """Three tokens 0.9 sure and all wrong, one 0.3 sure and right: (3 * 0.9 + 0.7) / 4."""
    sure, right = torch.tensor([0.9, 0.9, 0.9, 0.3]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert calibration_error(sure, right) == pytest.approx(0.85)
