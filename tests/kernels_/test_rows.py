"""The softmax of a block of logits: exact statistics, and the gradient left in the buffer."""

from __future__ import annotations

import math

import pytest
import torch
from support import oracle, problems

from dft_plugin.kernels import Transform
from dft_plugin.kernels.results import weigh
from dft_plugin.kernels.rows import concatenate
from dft_plugin.kernels.scoring import score_rows_
from dft_plugin.objectives import DFT, NLL, Rows

PLAIN = Transform()
EVERYTHING = frozenset({"entropy", "sum_p_squared"})


def score(logits, *targets, needs=EVERYTHING):
    return score_rows_(torch.tensor(logits), torch.tensor(targets), PLAIN, needs)


def test_two_logits_by_hand():
    # Odds of 3 to 1.
    rows = score([[math.log(3.0), 0.0], [math.log(3.0), 0.0]], 0, 1).rows
    assert rows.logp_T.tolist() == pytest.approx([math.log(3 / 4), math.log(1 / 4)])
    assert rows.one_minus_p_T.tolist() == pytest.approx([1 / 4, 3 / 4])
    assert rows.is_top1_T.tolist() == [True, False]
    entropy = math.log(4) - 3 / 4 * math.log(3)
    assert rows.entropy_T.tolist() == pytest.approx([entropy, entropy])
    assert rows.sum_p_squared_T.tolist() == pytest.approx([10 / 16, 10 / 16])


def test_the_buffer_becomes_minus_the_gradient_of_log_p():
    logits_TV = torch.tensor([[math.log(3.0), 0.0]])
    scored = score_rows_(logits_TV, torch.tensor([0]), PLAIN)
    gradient_TV = logits_TV * scored.inverse_norm_T[:, None]
    assert gradient_TV[0].tolist() == pytest.approx([3 / 4 - 1, 1 / 4])


def test_a_tie_at_the_top_is_top():
    assert score([[1.0, 1.0, 0.0]] * 3, 0, 1, 2).rows.is_top1_T.tolist() == [True, True, False]


@pytest.mark.parametrize("p", [1e-30, 1e-9, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-6, 1 - 1e-9])
def test_log_p_and_1_minus_p_keep_their_digits_in_every_single_row(p):
    logits, targets = problems.logits_with_probability(p)
    truth_T = oracle.log_probabilities(logits, targets)
    rows = score_rows_(logits, targets, PLAIN).rows
    assert rows.logp_T.tolist() == pytest.approx(truth_T.tolist(), rel=2e-6)
    assert rows.one_minus_p_T.tolist() == pytest.approx((-truth_T.expm1()).tolist(), rel=2e-6)


def test_an_underflow_of_p_is_none_of_log_p():
    rows = score([[0.0, -200.0, -1e5]] * 2, 1, 2).rows
    assert rows.logp_T.tolist() == [-200.0, -1e5]


def test_entropy_and_squares_survive_terms_that_underflow():
    rows = score([[0.0, 0.0, -1e5, -math.inf]], 0).rows
    assert rows.entropy_T.item() == pytest.approx(math.log(2))
    assert rows.sum_p_squared_T.item() == pytest.approx(1 / 2)


def test_a_certain_row_has_no_entropy_and_no_gradient():
    logits_TV = torch.tensor([[1e5, 0.0, 0.0]])
    scored = score_rows_(logits_TV, torch.tensor([0]), PLAIN, EVERYTHING)
    assert scored.rows.entropy_T.item() == 0
    assert scored.rows.sum_p_squared_T.item() == 1
    assert logits_TV.abs().max() == 0


def test_costly_statistics_are_left_out_unless_asked_for():
    rows = score([[0.0, 1.0]], 0, needs=frozenset()).rows
    assert rows.entropy_T is None
    assert rows.sum_p_squared_T is None


@pytest.mark.parametrize("transform", [PLAIN, Transform(0.5), Transform(1.0, 3.0), Transform(2.0, 5.0)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)],
)
def test_many_blocks_of_rows_give_the_gradient_on_the_raw_logits(dtype, tolerance, transform):
    # 8192 columns: a block has 64 rows on a CPU, so 150 make three.
    generator = torch.Generator().manual_seed(0)
    logits_TV = (2 * torch.randn(150, 8192, generator=generator)).to(dtype)
    targets_T = torch.randint(8192, (150,), generator=generator)
    targets_T[::2] = logits_TV.argmax(1)[::2]
    raw_TV = logits_TV.detach().clone().double().requires_grad_()
    x_TV = raw_TV * transform.scale
    if transform.softcap:
        x_TV = transform.softcap * torch.tanh(x_TV / transform.softcap)
    logp_T = oracle.log_probabilities(x_TV, targets_T)
    (truth_TV,) = torch.autograd.grad(-logp_T.sum(), raw_TV)

    scored = score_rows_(logits_TV, targets_T, transform, EVERYTHING)
    assert oracle.gap(scored.rows.logp_T, logp_T.detach()) < min(tolerance, 1e-6)
    assert oracle.gap(logits_TV * scored.inverse_norm_T[:, None], truth_TV) < tolerance
    p_TV = x_TV.detach().softmax(1)
    assert oracle.gap(scored.rows.entropy_T, -(p_TV * p_TV.log()).sum(1)) < 1e-6
    assert oracle.gap(scored.rows.sum_p_squared_T, p_TV.square().sum(1)) < 1e-6


def test_statistics_of_half_precision_logits_are_float32():
    for dtype in (torch.bfloat16, torch.float16):
        rows = score_rows_(torch.zeros(2, 3, dtype=dtype), torch.tensor([0, 1]), PLAIN).rows
        assert rows.logp_T.dtype == rows.one_minus_p_T.dtype == torch.float32


def test_a_sum_beyond_the_range_of_float16_does_not_overflow_its_buffer():
    # 100000 equal logits: R = 99999, beyond 65504.
    logits_TV = torch.zeros(1, 100_000, dtype=torch.float16)
    scored = score_rows_(logits_TV, torch.tensor([0]), PLAIN)
    assert (logits_TV * scored.inverse_norm_T[:, None])[0, 0].item() == pytest.approx(-0.99999, rel=1e-6)


def test_the_gradient_of_a_row_that_is_nearly_certain_keeps_its_digits_in_float16():
    # p = 1 - 1e-6, shared by 8: no number of float16 is nearer to 1.25e-7 than 1.19e-7.
    logits_TV, targets_T = torch.zeros(1, 9, dtype=torch.float16), torch.tensor([0])
    logits_TV[0, 0] = 15.9
    truth_TV = oracle.logits_gradient(logits_TV.float(), targets_T)
    scored = score_rows_(logits_TV, targets_T, PLAIN)
    assert oracle.gap(logits_TV * scored.inverse_norm_T[:, None], truth_TV) < 5e-4


def test_no_rows_have_statistics_of_length_0():
    scored = score_rows_(torch.empty(0, 3), torch.empty(0).long(), PLAIN, EVERYTHING)
    assert scored.rows.logp_T.shape == scored.rows.entropy_T.shape == (0,)
    assert scored.rows.is_top1_T.dtype == torch.bool
    assert scored.inverse_norm_T.shape == (0,)


def test_joined_statistics_keep_their_order_and_their_gaps():
    joined = concatenate([score([[0.0, 1.0]], 1).rows, score([[0.0, 1.0]], 0).rows])
    assert joined.is_top1_T.tolist() == [True, False]
    assert joined.entropy_T.shape == (2,)
    assert concatenate([score([[0.0, 1.0]], 1, needs=frozenset()).rows]).entropy_T is None


def rows_with(*logp: float) -> Rows:
    logp_T = torch.tensor(logp)
    return Rows(logp_T, 1 - logp_T.exp(), logp_T > -1)


def test_a_weigh_is_positive_nats():
    result = weigh(DFT(), rows_with(math.log(0.5), math.log(0.25)))
    assert result.loss_sum.item() == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(4))
    assert result.weight_T.tolist() == pytest.approx([0.5, 0.25])


def test_a_weigh_is_detached_whatever_the_objective_does():
    class Leaky(DFT):
        """Its weight hangs on a tensor that requires grad."""

        def weight(self, rows):
            return super().weight(rows) * torch.ones((), requires_grad=True)

    result = weigh(Leaky(), rows_with(-1.0))
    assert not result.loss_sum.requires_grad
    assert not result.weight_T.requires_grad


def test_an_impossible_token_costs_nothing_under_dft_and_everything_under_nll():
    assert weigh(DFT(), rows_with(-math.inf)).loss_sum == 0
    assert weigh(NLL(), rows_with(-math.inf)).loss_sum == math.inf
    assert weigh(DFT(floor=0.1), rows_with(-math.inf)).loss_sum == math.inf
