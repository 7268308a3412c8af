"""What is true of every kernel: the numbers in each dtype, and that the weight is detached."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch
from support import oracle, problems
from torch.nn import functional as F

from dft_plugin.kernels import (
    Head,
    LowRank,
    OpaqueHead,
    Transform,
    chunked,
    opaque,
    reference,
    score_logits,
    score_logits_,
)
from dft_plugin.objectives import DFT, NLL, Objective, Targets

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"scale": 0.25},
    "capped": {"softcap": 5.0},
    "lora": {"rank": 2},
    "all": {"bias": True, "scale": 0.5, "softcap": 10.0, "rank": 3},
}


def readable(kernel):
    def score(made, objective, **options):
        low_rank = LowRank(*made.low_rank) if made.low_rank else None
        head = Head(made.weight_VD, made.bias_V, Transform(made.scale, made.softcap), low_rank)
        return kernel(made.hidden_TD, head, Targets(made.targets_T), objective, **options)

    score.__name__ = kernel.__name__
    return score


def raw_logits(made, hidden=None):
    logits = F.linear(made.hidden_TD if hidden is None else hidden, made.weight_VD, made.bias_V)
    return logits if made.low_rank is None else logits + made.low_rank[0] @ made.low_rank[1].t()


def through_opaque(made, objective, **options):
    # With LoRA only where all tokens fit one chunk: its input is that of all.
    head = OpaqueHead(
        lambda hidden_CD: raw_logits(made, hidden_CD),
        made.weight_VD.shape[0],
        Transform(made.scale, made.softcap),
        tuple(made.inputs[1:]),
    )
    return opaque(made.hidden_TD, head, Targets(made.targets_T), objective, **options)


def through_logits(made, objective, **options):
    logits = Transform(made.scale, made.softcap)(raw_logits(made))
    kept = torch.ones_like(made.targets_T, dtype=torch.bool)
    return score_logits(logits, kept, Targets(made.targets_T), objective, **options)


def through_overwritten_logits(made, objective, **options):
    logits = Transform(made.scale, made.softcap)(raw_logits(made))
    kept = torch.ones_like(made.targets_T, dtype=torch.bool)
    return score_logits_(logits, kept, Targets(made.targets_T), objective, **options)


EXACT = [readable(chunked), through_opaque, through_logits, through_overwritten_logits]
exact_kernels = pytest.mark.parametrize("score", EXACT)
every_kernel = pytest.mark.parametrize("score", [*EXACT, readable(reference)])


def value_and_gradients(made, result):
    loss = result.loss_sum / made.targets_T.numel()
    return [loss.detach(), *torch.autograd.grad(loss, made.inputs)]


@pytest.mark.parametrize("shape", problems.ODD_SHAPES)
@pytest.mark.parametrize("head", HEADS)
@exact_kernels
def test_a_kernel_equals_the_oracle(score, head, shape):
    made = problems.problem(shape, **HEADS[head])
    loss, *gradients = value_and_gradients(made, score(made, DFT()))
    true_loss, *true_gradients = made.truth()
    assert loss.item() == pytest.approx(true_loss.item(), rel=1e-6)
    assert oracle.gap(gradients, true_gradients) < 1e-5


@pytest.mark.parametrize("head", HEADS)
def test_the_naive_kernel_equals_the_oracle_as_far_as_a_textbook_goes(head):
    made = problems.problem(**HEADS[head])
    score = readable(reference)
    assert oracle.gap(value_and_gradients(made, score(made, DFT())), made.truth()) < 1e-5


@pytest.mark.parametrize(
    ("objective", "weight"),
    [
        (DFT(), oracle.dft),
        (NLL(), oracle.nll),
        (DFT(alpha=0.5, floor=0.1), oracle.family(0.5, 0.1)),
    ],
    ids=repr,
)
@every_kernel
def test_the_gradient_on_the_logits_is_the_weight_times_softmax_minus_onehot(score, objective, weight):
    # The identity as hidden states hands the gradient on the logits to the weight, transposed.
    made = problems.problem((7, 7, 5))
    with torch.no_grad():
        made.hidden_TD.copy_(torch.eye(7))
    loss = score(made, objective).loss_sum / 7
    (gradient,) = torch.autograd.grad(loss, made.weight_VD)
    by_hand = oracle.logits_gradient(made.weight_VD.detach().t(), made.targets_T, weight)
    assert oracle.gap(gradient.t(), by_hand) < 1e-6


def test_without_the_detach_that_gradient_would_be_another():
    # The check above can fail: with w = p left in the graph, it is off by half of itself or more.
    logits, targets = problems.logits_with_probability(0.3, T=7, V=5)
    logits.requires_grad_()
    logp_T = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    (leaking,) = torch.autograd.grad(-(logp_T.exp() * logp_T).mean(), logits)
    assert oracle.gap(leaking, oracle.logits_gradient(logits.detach(), targets)) > 0.5


@every_kernel
def test_an_objective_that_forgets_to_detach_changes_nothing(score):
    sharpness = torch.tensor(1.0, requires_grad=True)

    class Leaky(Objective):
        """w = p, through a tensor that requires grad."""

        def weight(self, rows):
            return (sharpness * rows.logp_T).exp()

    made = problems.problem((7, 3, 5))
    result = score(made, Leaky())
    assert not result.weight_T.requires_grad
    assert oracle.gap(value_and_gradients(made, result), made.truth()) < 1e-5


def naive(made):
    """What hosts write: everything in the dtype of the model."""
    logits = raw_logits(made) * made.scale
    if made.softcap is not None:
        logits = made.softcap * torch.tanh(logits / made.softcap)
    nll_T = F.cross_entropy(logits, made.targets_T, reduction="none")
    loss = (torch.exp(-nll_T.detach()) * nll_T).sum()
    return [loss.detach(), *torch.autograd.grad(loss, made.inputs)]


A_LITTLE = {torch.float32: 2.5e-7, torch.bfloat16: 2.6e-3, torch.float16: 3.2e-4}
"""Two units in the last place of float32, a third of a unit of the others."""


@pytest.mark.parametrize("shape", problems.ODD_SHAPES[1:])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", A_LITTLE, ids=str)
@exact_kernels
def test_a_kernel_is_as_near_to_the_truth_as_the_naive_formula(score, dtype, head, shape):
    made = problems.problem(shape, dtype=dtype, **HEADS[head])
    # Sums: the mean of many tokens has gradients that float16 cannot hold.
    truths = [made.targets_T.numel() * truth for truth in made.truth()]
    loss_sum = score(made, DFT()).loss_sum
    ours = [loss_sum.detach(), *torch.autograd.grad(loss_sum, made.inputs)]
    for one, other, truth in zip(ours, naive(made), truths, strict=True):
        assert oracle.gap(one, truth) <= oracle.gap(other, truth) + A_LITTLE[dtype]


@every_kernel
def test_a_kernel_returns_a_sum_and_the_weights_it_used(score):
    made = problems.problem((7, 3, 5))
    result = score(made, DFT())
    logp_T = oracle.log_probabilities(made.logits().detach(), made.targets_T)
    assert oracle.gap(result.rows.logp_T, logp_T) < 1e-6
    assert oracle.gap(result.weight_T, logp_T.exp()) < 1e-6
    assert result.loss_sum.item() == pytest.approx(-(logp_T.exp() * logp_T).sum().item(), rel=1e-6)
    assert not any(tensor.requires_grad for tensor in (result.weight_T, result.rows.logp_T))


@every_kernel
def test_entropy_and_the_sum_of_squares_are_those_of_the_distribution(score):
    made = problems.problem((67, 33, 517))
    rows = score(made, DFT(), needs=frozenset({"entropy", "sum_p_squared"})).rows
    p_TV = made.logits().detach().softmax(1)
    assert oracle.gap(rows.entropy_T, -(p_TV * p_TV.log()).sum(1)) < 1e-6
    assert oracle.gap(rows.sum_p_squared_T, p_TV.square().sum(1)) < 1e-6


@every_kernel
def test_an_objective_gets_the_statistics_that_it_needs(score):
    class Certain(Objective):
        """w = exp(-entropy)."""

        needs: ClassVar = frozenset({"entropy"})

        def weight(self, rows):
            return (-rows.entropy_T).exp()

    made = problems.problem((7, 3, 5))
    p_TV = made.logits().detach().softmax(1)
    assert oracle.gap(score(made, Certain()).weight_T, (p_TV * p_TV.log()).sum(1).exp()) < 1e-6


@every_kernel
def test_no_token_gives_a_zero_and_zero_gradients(score):
    made = problems.problem((7, 3, 5), bias=True)
    empty = torch.empty(0, 3, requires_grad=True)
    nothing = dataclasses.replace(made, hidden_TD=empty, targets_T=made.targets_T[:0])
    result = score(nothing, DFT(), needs=frozenset({"entropy"}))
    assert result.loss_sum == 0
    assert result.rows.entropy_T.shape == result.weight_T.shape == (0,)
    for gradient in torch.autograd.grad(result.loss_sum, nothing.inputs):
        assert not gradient.abs().sum()
