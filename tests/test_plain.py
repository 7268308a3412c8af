"""Numbers of NumPy, of torch and of Python's other kinds in what stands after `loss:`."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from dft_plugin.config.parsing import parse_settings
from dft_plugin.errors import SettingsError
from dft_plugin.objectives import FAMILY


def parse(value):
    return parse_settings(value, objectives={kind.name: kind for kind in FAMILY}, kernels=())


@pytest.mark.parametrize(
    "half",
    [Fraction(1, 2), Decimal("0.5"), np.float32(0.5), torch.tensor(0.5)],
    ids=lambda one: type(one).__name__,
)
def test_numbers_of_other_libraries_are_python_s_own_from_then_on(half):
    ramped = parse({"alpha": {"from": half, "to": 1, "until": half}})
    assert json.loads(json.dumps(ramped.as_written()))["alpha"] == {"from": 0.5, "to": 1, "until": 0.5}
    assert json.dumps(parse({"alpha": half}).as_written()) == '{"name": "dft", "alpha": 0.5}'
    assert parse({"first": {"name": "nll", "for": half}}) == parse({"first": {"name": "nll", "for": 0.5}})


def test_a_masked_number_is_none_and_a_key_of_numpy_s_is_one():
    with pytest.raises(SettingsError, match=r"loss\.alpha"):
        parse({"alpha": np.ma.masked})
    assert parse({"weights": {"tokens": {np.int64(5): 2}}}) == parse({"weights": {"tokens": {5: 2}}})


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("\ud800", "loss"),
        ({"weights": {"tokens": {"a\udfff": 2}}}, "loss.weights.tokens"),
        ({"weights": {"column": "\udc00"}}, "loss.weights.column"),
        ({"reference": "\ud834/model"}, "loss.reference"),
        ({"\ud800": 1}, "loss"),
    ],
)
def test_half_of_a_character_is_no_text(value, place):
    with pytest.raises(SettingsError, match=rf"^`{place}`: '.*' holds half of a character") as refused:
        parse(value)
    str(refused.value).encode()
    assert parse({"weights": {"tokens": {"\U0001d11e": 2}}}).weights.tokens == {"\U0001d11e": 2}
