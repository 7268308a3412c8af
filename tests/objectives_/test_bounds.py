"""No number of an objective may be so large that nothing is trained: all have bounds, and there it ends."""

from __future__ import annotations

import math
from typing import get_args

import annotated_types
import pydantic
import pytest
import torch

from dft_plugin.objectives import DFT, EAFT, FAMILY, Focal, Rows, Thresholded
from dft_plugin.objectives.options import MOST

NUMBERS = [
    (kind, name)
    for kind in FAMILY
    for name, field in kind.model_fields.items()
    if {float, int} & {field.annotation, *get_args(field.annotation)}
]


def limits(kind, name):
    """The smallest and the largest value that are taken."""
    low, high = -math.inf, math.inf
    for limit in kind.model_fields[name].metadata:
        for bound in (annotated_types.Ge, annotated_types.Gt):
            low = getattr(limit, bound.__name__.lower()) if isinstance(limit, bound) else low
        for bound in (annotated_types.Le, annotated_types.Lt):
            high = getattr(limit, bound.__name__.lower()) if isinstance(limit, bound) else high
    return low, high


def test_the_numbers_of_the_family_are_found():
    assert (DFT, "alpha") in NUMBERS
    assert len(NUMBERS) >= 14


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=lambda one: getattr(one, "name", one))
@pytest.mark.parametrize("value", [9e9, -9e9, MOST + 1e-3, math.inf, math.nan])
def test_no_number_is_taken_that_is_out_of_all_reason(kind, name, value):
    low, high = limits(kind, name)
    assert -math.inf < low < high <= MOST
    with pytest.raises(pydantic.ValidationError, match=name):
        kind(**{name: value})


@pytest.mark.parametrize("objective", [DFT(alpha=MOST), Focal(gamma=MOST)], ids=["dft", "focal"])
def test_at_the_largest_exponent_a_token_that_is_half_known_teaches_nothing(objective):
    p_T = torch.tensor([0.5, 0.9 if objective.name == "dft" else 0.1])
    rows = Rows(p_T.log(), 1 - p_T, p_T > 1)
    assert 0 < objective.weight(rows).max() < 1e-4


@pytest.mark.parametrize(
    "options", [{"threshold": 1}, {"threshold": 1.0, "of": "p"}, {"threshold": 0, "keep": "below"}]
)
def test_a_threshold_that_keeps_no_token_is_refused(options):
    with pytest.raises(pydantic.ValidationError, match="so nothing would be trained"):
        Thresholded(**options)


def test_a_threshold_that_keeps_every_token_is_none_of_these():
    Thresholded(threshold=0)
    Thresholded(threshold=1, keep="below")


def test_the_smallest_normalizer_does_not_explode():
    with pytest.raises(pydantic.ValidationError, match="normalizer"):
        EAFT(normalizer=1e-9)
