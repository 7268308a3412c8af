"""Raw sums, merged and reduced, divided once. The numbers are worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from support.scored import tokens

from dft_plugin.core.stats import LOW_WEIGHT, LossStats, Sum, Tally

EOS = 2


def three_tokens(eos_token_ids=(EOS,)) -> LossStats:
    """p = 1/2, 1/4, 1/200, each weighed by its p; the last two targets are EOS."""
    p_T = torch.tensor([0.5, 0.25, 0.005], dtype=torch.float64)
    return LossStats.of_tokens(tokens(p_T.log(), p_T), torch.tensor([4, EOS, EOS]), eos_token_ids)


def one_token(p: float = 0.1, weight: float = 1.0) -> LossStats:
    return LossStats.of_tokens(tokens(torch.tensor([p]).log(), torch.tensor([weight])), torch.tensor([7]))


def test_every_sum_is_the_sum_that_its_name_says():
    assert dict(zip(Sum, three_tokens().sums_K.tolist(), strict=True)) == pytest.approx(
        {
            Sum.TOKENS: 3,
            Sum.LOSS: 0.5 * math.log(2) + 0.25 * math.log(4) + 0.005 * math.log(200),
            Sum.NLL: math.log(2) + math.log(4) + math.log(200),
            Sum.PROB: 0.755,
            Sum.WEIGHT: 0.755,
            Sum.WEIGHT_SQUARED: 0.25 + 0.0625 + 0.000025,
            Sum.LOW_WEIGHT_TOKENS: 1,
            Sum.EOS_TOKENS: 2,
            Sum.EOS_PROB: 0.255,
            Sum.DIVISOR: 3,
        },
        rel=1e-12,
    )


def test_the_log_divides_by_tokens_and_says_so_in_nats():
    assert three_tokens().as_logs() == pytest.approx(
        {
            "dft/loss": (0.5 * math.log(2) + 0.25 * math.log(4) + 0.005 * math.log(200)) / 3,
            "dft/nll": math.log(1600) / 3,
            "dft/perplexity": 1600 ** (1 / 3),
            "dft/mean_prob": 0.755 / 3,
            "dft/mean_weight": 0.755 / 3,
            "dft/effective_tokens": 0.755**2 / 0.312525,
            "dft/tokens": 3,
            "dft/low_weight_share": 1 / 3,
            "dft/eos_prob": 0.255 / 2,
        },
        rel=1e-12,
    )


def test_equal_weights_count_every_token_as_effective():
    stats = one_token(weight=0.3) + one_token(weight=0.3)
    assert stats.as_logs()["dft/effective_tokens"] == pytest.approx(2)


def test_weights_of_zero_leave_no_effective_token():
    assert one_token(weight=0.0).as_logs()["dft/effective_tokens"] == 0


@pytest.mark.parametrize(("weight", "share"), [(LOW_WEIGHT - 1e-6, 1), (LOW_WEIGHT, 0)])
def test_a_weight_below_one_percent_is_low(weight, share):
    weight_T = torch.tensor([weight], dtype=torch.float64)
    stats = LossStats.of_tokens(tokens(torch.zeros(1), weight_T), torch.tensor([7]))
    assert stats.as_logs()["dft/low_weight_share"] == share


def test_without_an_eos_target_nothing_is_said_about_eos():
    assert "dft/eos_prob" not in one_token().as_logs()
    assert "dft/eos_prob" not in three_tokens(eos_token_ids=(9,)).as_logs()


def test_each_of_several_eos_tokens_counts():
    assert three_tokens(eos_token_ids=(4, EOS)).as_logs()["dft/eos_prob"] == pytest.approx(0.755 / 3)


def test_a_prefix_stands_before_every_key():
    logs = three_tokens().as_logs("eval_")
    assert logs.keys() == {f"eval_{key}" for key in three_tokens().as_logs()}


def test_merging_is_the_same_as_scoring_at_once():
    logp_T = torch.tensor([-0.1, -2.0, -30.0])
    weight_T = torch.tensor([0.9, 0.1, 0.0])
    targets_T = torch.tensor([1, 2, 3])
    at_once = LossStats.of_tokens(tokens(logp_T, weight_T), targets_T, (3,))
    merged = LossStats.zero()
    for i in range(3):
        one = slice(i, i + 1)
        merged = merged + LossStats.of_tokens(tokens(logp_T[one], weight_T[one]), targets_T[one], (3,))
    assert merged.sums_K.tolist() == pytest.approx(at_once.sums_K.tolist(), rel=1e-12)


def test_means_are_taken_after_the_merge_not_before():
    # One token at 1 nat and three at 2: 7/4, where the mean of the means would be 3/2.
    short = LossStats.of_tokens(tokens(torch.tensor([-1.0]), torch.ones(1)), torch.tensor([5]))
    long = LossStats.of_tokens(tokens(torch.full((3,), -2.0), torch.ones(3)), torch.tensor([5, 5, 5]))
    assert (short + long).as_logs()["dft/nll"] == pytest.approx(7 / 4)


def test_reduce_hands_the_raw_sums_to_the_ranks():
    reduced = three_tokens().reduce(lambda sums_K: sums_K * 4)
    assert reduced.as_logs()["dft/tokens"] == 12
    assert reduced.as_logs()["dft/nll"] == pytest.approx(three_tokens().as_logs()["dft/nll"])


def test_no_token_gives_no_log():
    assert LossStats.zero().as_logs() == {}
    nothing = LossStats.of_tokens(tokens(torch.empty(0), torch.empty(0)), torch.empty(0).long(), (EOS,))
    assert nothing.sums_K.tolist() == [0.0] * len(Sum)
    assert nothing.as_logs() == {}


def test_perplexity_beyond_the_largest_float_is_infinite():
    def perplexity(nats):
        stats = LossStats.of_tokens(tokens(torch.tensor([-nats]), torch.ones(1)), torch.tensor([5]))
        return stats.as_logs()["dft/perplexity"]

    assert perplexity(650.0) == pytest.approx(math.exp(650))
    assert perplexity(1e5) == math.inf
    assert perplexity(math.inf) == math.inf


def test_a_nan_is_logged_as_nan():
    logs = one_token(p=math.nan, weight=math.nan).as_logs()
    assert math.isnan(logs["dft/loss"])
    assert math.isnan(logs["dft/perplexity"])


def test_an_impossible_token_of_weight_zero_adds_nothing_to_the_loss():
    logs = one_token(p=0.0, weight=0.0).as_logs()
    assert logs["dft/loss"] == 0
    assert logs["dft/nll"] == math.inf


def test_a_negative_weight_is_part_of_the_loss():
    assert one_token(p=0.5, weight=-2.0).as_logs()["dft/loss"] == pytest.approx(-2 * math.log(2))


def test_sums_of_half_precision_tokens_are_float64():
    # 2049 ones: bfloat16 would stop counting at 256, float16 at 2048.
    for dtype in (torch.bfloat16, torch.float16):
        ones_T = torch.ones(2049, dtype=dtype)
        stats = LossStats.of_tokens(tokens(-ones_T, ones_T), torch.zeros(2049).long())
        assert stats.sums_K.dtype == torch.float64
        assert stats.sums_K[Sum.NLL] == 2049


def test_nothing_is_read_before_it_is_logged():
    # A tensor on `meta` has no value that could be read.
    tally, values_T = Tally(), torch.empty(4, device="meta")
    for _ in range(2):
        tally.add(
            LossStats.of_tokens(tokens(values_T, values_T), torch.empty(4, dtype=torch.long, device="meta"), (EOS,))
        )
    assert tally.take().sums_K.device.type == "meta"
