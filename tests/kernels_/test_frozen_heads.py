"""A frozen head on a CPU: `blocked` on odd shapes and at its edges, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from support import oracle, problems
from support.counting import CountGemms
from torch.nn import functional as F

from dft_plugin.kernels import Head, LowRank, Transform, auto, blocked
from dft_plugin.objectives import DFT, NLL, Targets

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"scale": 0.25},
    "capped": {"softcap": 5.0},
    "all": {"bias": True, "scale": 0.5, "softcap": 10.0},
}
EVERYTHING = frozenset({"entropy", "sum_p_squared"})


def head_of(made: problems.Problem, *, trained: bool = False) -> Head:
    for tensor in (made.weight_VD, made.bias_V):
        if tensor is not None:
            tensor.requires_grad_(trained)
    return Head(made.weight_VD, made.bias_V, Transform(made.scale, made.softcap))


def score(made: problems.Problem, **options):
    return blocked(made.hidden_TD, head_of(made), Targets(made.targets_T), DFT(), **options)


def assert_exact(made: problems.Problem, tolerance: float = 1e-6, gradient_gap: float = 1e-5) -> None:
    truth, true_gradient, *_ = made.truth()
    result = score(made, needs=EVERYTHING)
    loss = result.loss_sum / made.targets_T.numel()
    assert loss.item() == pytest.approx(truth.item(), rel=tolerance)
    assert oracle.gap(torch.autograd.grad(loss, made.hidden_TD), [true_gradient]) < gradient_gap
    logits_TV = made.logits().detach()
    p_TV = logits_TV.softmax(1)
    logp_T = oracle.log_probabilities(logits_TV, made.targets_T)
    assert oracle.gap(result.rows.logp_T, logp_T) < tolerance
    assert oracle.gap(result.rows.one_minus_p_T, -logp_T.expm1()) < tolerance
    assert oracle.gap(result.rows.entropy_T, torch.special.entr(p_TV).sum(1)) < tolerance
    assert oracle.gap(result.rows.sum_p_squared_T, p_TV.square().sum(1)) < tolerance
    assert torch.equal(result.rows.is_top1_T, logits_TV.argmax(1) == made.targets_T)


@pytest.mark.parametrize("shape", problems.ODD_SHAPES)
@pytest.mark.parametrize("head", HEADS)
def test_odd_shapes_equal_the_oracle(head, shape):
    assert_exact(problems.problem(shape, **HEADS[head]))


@pytest.mark.parametrize(("first", "last"), [(-90.0, 90.0), (90.0, -90.0)])
def test_sums_are_rescaled_when_a_later_block_holds_a_larger_logit(first, last):
    hidden = torch.ones(2048, 1, requires_grad=True)
    weight = torch.linspace(first, last, 4500)[:, None].requires_grad_()
    targets = torch.arange(2048) * 2 + 404  # up to the last token, in every block of 2048
    # The reference is off by 1.2e-5 where the CPU's GEMM adds in order.
    made = problems.Problem(hidden, targets, weight, None, None, 1.0, None)
    # A logit of 90 is one of 130 bits, of which float32 keeps 1.5e-5.
    assert_exact(made, tolerance=4e-6, gradient_gap=1.5e-5)


def test_a_block_that_is_masked_as_a_whole_is_no_nan():
    made = problems.problem((2048, 2, 2058), bias=True)
    made.bias_V.data[:2050] = -math.inf  # the first block of 2048 columns, and some of the second
    made.targets_T.copy_(2050 + torch.arange(2048) % 8)
    made.targets_T[0] = 7  # a masked token: p = 0
    result = score(made)
    (gradient,) = torch.autograd.grad(result.loss_sum, made.hidden_TD)
    logits = (made.hidden_TD @ made.weight_VD.t() + made.bias_V).detach()[1:, 2050:]
    targets = made.targets_T[1:] - 2050
    truth = oracle.token_losses(logits, targets).sum()
    assert result.weight_T[0] == 0
    assert result.loss_sum.item() == pytest.approx(truth.item(), rel=1e-6)
    assert gradient[0].tolist() == [0, 0]
    on_logits = 2047 * oracle.logits_gradient(logits, targets)
    assert oracle.gap(gradient[1:], on_logits @ made.weight_VD[2050:].double()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", HEADS)
def test_half_precision_is_as_near_to_the_truth_as_the_naive_formula(head, dtype):
    made = problems.problem((67, 33, 517), dtype=dtype, **HEADS[head])
    truth, true_gradient, *_ = made.truth()
    logits = made.scale * F.linear(made.hidden_TD, made.weight_VD, made.bias_V)
    if made.softcap is not None:
        logits = made.softcap * torch.tanh(logits / made.softcap)
    nll_T = F.cross_entropy(logits, made.targets_T, reduction="none")
    naive = (torch.exp(-nll_T.detach()) * nll_T).sum()
    ours = score(made).loss_sum
    a_little = torch.finfo(dtype).eps / 2
    (naive_gradient,) = torch.autograd.grad(naive, made.hidden_TD)
    (gradient,) = torch.autograd.grad(ours, made.hidden_TD)
    assert (ours.dtype, gradient.dtype) == (torch.float32, dtype)
    assert oracle.gap(ours, 67 * truth) <= oracle.gap(naive, 67 * truth) + a_little
    allowed = oracle.gap(naive_gradient, 67 * true_gradient) + a_little
    assert oracle.gap(gradient, 67 * true_gradient) <= allowed


def test_autocast_keeps_the_loss_and_the_gradient_in_float32():
    made = problems.problem((67, 33, 517), bias=True)
    half = problems.problem((67, 33, 517), bias=True, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = score(made).loss_sum / 67
    (gradient,) = torch.autograd.grad(loss, made.hidden_TD)
    assert gradient.dtype == loss.dtype == torch.float32
    assert oracle.gap(gradient, half.truth()[1]) < 5e-2


def test_backward_runs_no_gemm_and_no_grad_mode_half_of_them():
    made = problems.problem((12, 5, 11))
    with CountGemms() as counter:
        loss_sum = score(made).loss_sum
        assert counter.count == 2
        loss_sum.backward()
        assert counter.count == 2
    with CountGemms() as counter, torch.no_grad():
        score(made)
    assert counter.count == 1


def test_what_a_caller_does_to_a_gradient_does_not_reach_a_retained_graph():
    made = problems.problem((12, 5, 11))
    truth = made.truth()[1]
    loss = score(made).loss_sum / 12
    (first,) = torch.autograd.grad(loss, made.hidden_TD, retain_graph=True)
    first.zero_()
    (second,) = torch.autograd.grad(loss, made.hidden_TD)
    assert oracle.gap(second, truth) < 1e-5


def test_the_inputs_stay_as_they_are():
    made = problems.problem((12, 5, 11), bias=True, softcap=5.0)
    before = [tensor.detach().clone() for tensor in made.inputs]
    score(made).loss_sum.backward()
    assert all(map(torch.equal, (tensor.detach() for tensor in made.inputs), before))


def test_no_token_gives_a_zero_and_a_gradient():
    hidden = torch.empty(0, 5, requires_grad=True)
    targets = torch.empty(0, dtype=torch.int64)
    result = blocked(hidden, Head(torch.ones(11, 5)), Targets(targets), NLL(), needs=EVERYTHING)
    result.loss_sum.backward()
    assert result.loss_sum == 0
    assert hidden.grad.shape == (0, 5)
    assert result.rows.entropy_T.shape == result.rows.sum_p_squared_T.shape == (0,)


@pytest.mark.parametrize(("trained", "gemms"), [(False, 2), (True, 3)])
def test_auto_runs_no_more_gemms_than_the_head_needs(trained, gemms):
    made = problems.problem((12, 5, 11))
    with CountGemms() as counter:
        auto(made.hidden_TD, head_of(made, trained=trained), Targets(made.targets_T), DFT())
    assert counter.count == gemms


def test_a_head_is_trained_if_any_part_of_it_is():
    frozen, trained = torch.ones(11, 5), torch.ones(11, 5, requires_grad=True)
    assert not Head(frozen, torch.ones(11)).trained
    assert Head(trained).trained
    assert Head(frozen, torch.ones(11, requires_grad=True)).trained
    assert Head(frozen, low_rank=LowRank(torch.ones(3, 2), torch.ones(11, 2))).trained
