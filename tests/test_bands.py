"""Tokens by their probability: each is in one band, and sums are those of all tokens."""

import pytest
import torch
from torch.testing import assert_close

from dft_plugin.core.bands import BANDS, EDGES, Bands, band_of, count_by_band


def test_each_probability_is_in_the_band_whose_lower_end_it_reaches():
    p = torch.tensor([0.0, 0.0009, 0.001, 0.0099, 0.01, 0.049, 0.05, 0.5, 0.949, 0.95, 0.99, 1.0], dtype=torch.float64)
    assert band_of(p).tolist() == [0, 0, 1, 1, 2, 2, 3, 12, 20, 21, 22, 22]
    assert len(EDGES) == BANDS + 1 == 24


def test_sums_over_bands_are_sums_over_tokens_whatever_the_batches():
    torch.manual_seed(0)
    logp = torch.rand(300, dtype=torch.float64).log()
    p = logp.exp()
    whole, parts = Bands(), Bands()
    whole.add(logp, 1 - p, {"nll": torch.ones(300), "dft": p})
    for part in logp.split(70):
        parts.add(part, 1 - part.exp(), {"nll": torch.ones_like(part), "dft": part.exp()})
    for bands in (whole, parts):
        assert bands.tokens == 300
        assert_close(bands.prob_K.sum(), p.sum())
        assert_close(bands.nll_K.sum(), -logp.sum())
        assert_close(bands.gradient_K["dft"].sum(), (p * (1 - p)).sum())
        assert bands.effective_tokens("nll") == pytest.approx(300)
        assert bands.effective_tokens("dft") == pytest.approx(float(p.sum() ** 2 / p.square().sum()))
    assert_close(whole.gradient_K["dft"], parts.gradient_K["dft"])


def test_a_weight_below_zero_moves_the_model_as_one_above():
    bands = Bands()
    bands.add(torch.tensor([0.5]).log(), torch.tensor([0.5]), {"unlearned": torch.tensor([-2.0])})
    assert float(bands.gradient_K["unlearned"].sum()) == pytest.approx(1.0)


def test_an_objective_that_weighs_nothing_has_no_effective_tokens():
    bands = Bands()
    bands.add(torch.tensor([0.5]).log(), torch.tensor([0.5]), {"none": torch.zeros(1)})
    assert bands.effective_tokens("none") == 0.0


def test_counts_are_those_of_the_bands_and_a_probability_that_is_none_is_in_none():
    torch.manual_seed(0)
    p = torch.cat([torch.rand(500, dtype=torch.float64) ** 3, torch.tensor(EDGES, dtype=torch.float64)])
    assert count_by_band(p).tolist() == torch.bincount(band_of(p), minlength=BANDS).tolist()
    assert count_by_band(torch.tensor([0.5, torch.nan])).sum() == 1
    assert count_by_band(torch.empty(0)).tolist() == [0.0] * BANDS
