"""Which weight each token gets, and which options there are."""

from __future__ import annotations

import math
from typing import ClassVar

import pydantic
import pytest
import torch

from dft_plugin import token_loss
from dft_plugin.errors import PluginError
from dft_plugin.objectives import DFT, NLL, Objective, Rows


def rows(*p: float, dtype: torch.dtype = torch.float32) -> Rows:
    p_T = torch.tensor(p, dtype=dtype)
    return Rows(logp_T=p_T.log(), one_minus_p_T=1 - p_T, is_top1_T=p_T > 0.5)


def weights(objective: Objective, *p: float) -> list[float]:
    return objective.weight(rows(*p, dtype=torch.float64)).tolist()


def test_nll_weighs_every_token_alike():
    assert weights(NLL(), 0.0, 0.3, 1.0) == [1, 1, 1]


def test_dft_weighs_a_token_by_its_probability():
    assert weights(DFT(), 0.0, 0.3, 1.0) == pytest.approx([0, 0.3, 1])


def test_alpha_is_the_exponent_of_the_probability():
    assert weights(DFT(alpha=0.5), 0.0, 0.25, 1.0) == pytest.approx([0, 0.5, 1])
    assert weights(DFT(alpha=2), 0.0, 0.25, 1.0) == pytest.approx([0, 0.0625, 1])


def test_alpha_zero_is_nll_even_for_an_impossible_token():
    assert weights(DFT(alpha=0), 0.0, 0.3, 1.0) == [1, 1, 1]


def test_the_floor_is_the_smallest_weight():
    assert weights(DFT(floor=0.1), 0.0, 0.05, 0.3) == pytest.approx([0.1, 0.1, 0.3])


def test_the_floor_is_laid_under_the_power():
    # 0.5 ** 2 = 0.25 and 0.1 ** 2 = 0.01.
    assert weights(DFT(alpha=2, floor=0.2), 0.1, 0.5) == pytest.approx([0.2, 0.25])


@pytest.mark.parametrize("objective", [DFT(), DFT(alpha=0), DFT(alpha=0.5, floor=0.1), NLL()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_has_the_dtype_of_the_log_probability_and_no_graph(objective, dtype):
    weight_T = objective.weight(rows(0.2, 0.9, dtype=dtype))
    assert weight_T.dtype == dtype
    assert not weight_T.requires_grad


@pytest.mark.parametrize("objective", [DFT(), NLL()], ids=repr)
def test_no_token_gets_no_weight(objective):
    assert objective.weight(rows()).shape == (0,)


def test_the_names_and_options_of_the_shipped_objectives_are_these():
    # A user's YAML depends on them: add here, and to the changelog, but do not take away.
    assert {kind.name: set(kind.model_fields) for kind in (DFT, NLL)} == {
        "dft": {"alpha", "floor"},
        "nll": set(),
    }


def test_the_defaults_are_the_paper():
    assert DFT() == DFT(alpha=1, floor=0)


@pytest.mark.parametrize("kind", [DFT, NLL])
def test_an_objective_says_what_it_is_and_where_it_was_seen(kind):
    assert kind.summary.startswith("w = ")
    assert "arXiv 2508.05629, eq." in kind.source
    assert all(field.description for field in kind.model_fields.values())


@pytest.mark.parametrize(("given", "alpha"), [("1e-2", 0.01), (2, 2.0), ("0.5", 0.5), (10**2, 100.0)])
def test_a_number_may_be_written_as_yaml_reads_it(given, alpha):
    assert DFT(alpha=given).alpha == alpha


@pytest.mark.parametrize("given", [-1e-9, math.nan, math.inf, "nan", "half", None, [1]])
def test_an_impossible_alpha_is_refused(given):
    with pytest.raises(pydantic.ValidationError, match="alpha"):
        DFT(alpha=given)


@pytest.mark.parametrize("given", [-0.1, 1.1, math.nan, "nan", None])
def test_an_impossible_floor_is_refused(given):
    with pytest.raises(pydantic.ValidationError, match="floor"):
        DFT(floor=given)


@pytest.mark.parametrize("option", ["alpha", "floor"])
def test_a_truth_value_is_no_number(option):
    with pytest.raises(pydantic.ValidationError, match="a number is needed, not a truth value"):
        DFT(**{option: True})


def test_an_unknown_option_is_refused():
    with pytest.raises(pydantic.ValidationError, match="alpah"):
        DFT(alpah=0.5)


def test_an_objective_cannot_be_changed_during_a_run():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        DFT().alpha = 0.5


def test_an_objective_without_a_weight_says_so():
    class Nameless(Objective):
        """Defines nothing."""

    with pytest.raises(NotImplementedError):
        Nameless().weight(rows(0.5))


def test_weights_of_another_shape_are_refused():
    class Column(Objective):
        name: ClassVar[str] = "column"

        def weight(self, rows):
            return rows.logp_T.exp()[:, None]

    with pytest.raises(PluginError, match=r"column returned weights of shape \(3, 1\) for 3 tokens"):
        token_loss(torch.zeros(3, 5), torch.tensor([0, 1, 2]), objective=Column())
