"""What autograd's graph tells of a tensor without its values."""

from __future__ import annotations

import pytest
import torch
from support import waits

from dft_plugin.hf import graph

SAID = {
    "a product": (lambda x: x * 0.5, 0.5),
    "a quotient": (lambda x: x / 3, 3),
    "a cap": (lambda x: (x / 30.0).tanh() * 30.0, 30.0),
}
UNSAID = {
    "a tensor": lambda x: x * torch.tensor(0.5),
    "a tensor in float64": lambda x: x * torch.tensor(0.5, dtype=torch.float64),
    "a vector": lambda x: x * torch.ones(3),
    "another operation": lambda x: (x * 0.5).relu(),
    "itself": lambda x: x * x,
    "another leaf": lambda x: torch.ones(3, requires_grad=True) * 0.5,
    "no graph": lambda x: x.detach() * 0.5,
}


def of(function):
    x = torch.ones(3, requires_grad=True)
    return graph.by_numbers(function(x.clone()), x)


@pytest.mark.skipif(not waits.SHOWN, reason="this torch does not show what an operation has saved")
@pytest.mark.parametrize(("function", "number"), SAID.values(), ids=SAID.keys())
def test_the_same_numbers_are_the_same_steps(function, number):
    said = of(function)
    assert said is not None
    assert number in [found for _, found in said[2]]
    assert of(function) == said
    assert of(lambda x: function(x) * 2) != said
    assert {of(other) == said for other, _ in SAID.values()} == {True, False}


@pytest.mark.skipif(not waits.SHOWN, reason="this torch does not show what an operation has saved")
def test_another_number_or_dtype_is_another_step():
    assert len({of(lambda x, n=n: x / n) for n in (1.0, 2.0, 2.0 + 1e-15)}) == 3
    assert of(lambda x: x * 2.0) != of(lambda x: x.double() * 2.0)


@pytest.mark.parametrize("function", UNSAID.values(), ids=UNSAID.keys())
def test_what_took_more_is_not_said(function):
    assert of(function) is None
