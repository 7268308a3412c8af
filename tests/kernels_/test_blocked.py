"""The one-pass kernel for a frozen head: exact over many blocks and passes, and never for a trained head."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from support import oracle

from dft_plugin.kernels import Head, LowRank, Transform, auto, blocked, choose, chunked, gemm
from dft_plugin.objectives import DFT, NLL, Objective, Targets

# More tokens than one pass takes, and more words than a block of 2,048 has room for.
T, D, V = 2100, 8, 4500

TRANSFORMS = [Transform(), Transform(0.5), Transform(1.0, 5.0), Transform(0.5, 3.0)]


def problem(dtype=torch.float32, bias=False):
    """Targets from near impossible to near certain, in every block."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(V, D, generator=generator)
    targets = torch.arange(T) * 3 % V
    hidden = weight[targets] * torch.linspace(-0.5, 1.5, T)[:, None]
    bias_V = torch.randn(V, generator=generator).to(dtype) if bias else None
    return hidden.to(dtype).requires_grad_(), weight.to(dtype), bias_V, targets


def truth(hidden, weight, bias, targets, transform, weigh):
    hidden = hidden.detach().double().requires_grad_()
    logits = transform(hidden @ weight.double().t() + (0 if bias is None else bias.double()))
    loss = oracle.loss(logits, targets, weigh)
    loss.backward()
    return loss.detach(), hidden.grad


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize(("objective", "weigh"), [(DFT(), oracle.dft), (NLL(), oracle.nll)], ids=["dft", "nll"])
def test_it_equals_the_oracle(transform, objective, weigh):
    hidden, weight, bias_V, targets = problem(bias=True)
    result = blocked(hidden, Head(weight, bias_V, transform), Targets(targets), objective)
    loss = result.loss_sum / T
    loss.backward()
    true_loss, true_gradient = truth(hidden, weight, bias_V, targets, transform, weigh)
    assert loss.item() == pytest.approx(true_loss.item(), rel=1e-6)
    assert oracle.gap([hidden.grad], [true_gradient]) < 1e-5


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_its_statistics_equal_those_of_chunked(transform):
    hidden, weight, bias, targets = problem(bias=True)
    head, needs = Head(weight, bias, transform), frozenset({"entropy", "sum_p_squared"})
    with torch.no_grad():
        ours = blocked(hidden, head, Targets(targets), DFT(), needs=needs).rows
        theirs = chunked(hidden, head, Targets(targets), DFT(), needs=needs).rows
    for name in ("logp_T", "one_minus_p_T", "entropy_T", "sum_p_squared_T"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-6), name
    assert (ours.is_top1_T == theirs.is_top1_T).float().mean() > 0.99


def test_multiplied_in_float32_half_precision_is_nearer_to_the_truth_than_chunked(monkeypatch):
    monkeypatch.setattr(gemm, "half_is_faster", lambda dtype: False)
    hidden, weight, _, targets = problem(torch.bfloat16)
    _, true_gradient = truth(hidden, weight, None, targets, Transform(), oracle.dft)
    gaps = []
    for kernel in (blocked, chunked):
        (gradient,) = torch.autograd.grad(kernel(hidden, Head(weight), Targets(targets), DFT()).loss_sum / T, hidden)
        assert gradient.dtype == torch.bfloat16
        gaps.append(oracle.gap([gradient], [true_gradient]))
    assert gaps[0] < 0.8 * gaps[1]


@dataclass(frozen=True)
class FirstLogit:
    """The logit of token 0: a view of what it is made from."""

    name = "first_logit"

    def __call__(self, logits_CV, targets_C):
        return logits_CV[:, 0]

    def combine(self, parts_PC):
        return parts_PC[0]


class ByFirstLogit(Objective):
    name = "by_first_logit"
    summary = "w = sigmoid of the logit of token 0"
    needs = frozenset({FirstLogit()})

    def weight(self, rows):
        return rows.added["first_logit"].sigmoid()


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_a_statistic_of_blocks_may_be_a_view_of_them(transform):
    hidden, weight, bias, targets = problem(bias=True)
    result = blocked(hidden, Head(weight, bias, transform), Targets(targets), ByFirstLogit())
    first_T = transform(hidden.detach() @ weight[0] + bias[0])
    assert oracle.gap(result.weight_T, first_T.sigmoid()) < 1e-6


def test_a_second_backward_and_an_upstream_factor_are_right():
    hidden, weight, _, targets = problem()
    loss = blocked(hidden, Head(weight), Targets(targets), DFT()).loss_sum
    (once,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (again,) = torch.autograd.grad(3 * loss, hidden)
    assert oracle.gap(again, 3 * once) < 1e-6


@pytest.mark.parametrize("part", ["weight", "bias", "lora"])
def test_a_trained_head_gets_its_gradient(part):
    """It is passed on to `chunked`; a kernel that dropped the gradient would freeze the head in silence."""
    hidden, weight, bias, targets = problem(bias=True)
    low_rank = None
    leaf = {"weight": weight, "bias": bias}.get(part)
    if part == "lora":
        leaf = torch.randn(V, 2)
        low_rank = LowRank(hidden.detach()[:, :2], leaf)
    leaf.requires_grad_()
    head = Head(weight, bias, low_rank=low_rank)
    for kernel in (blocked, auto):
        (ours,) = torch.autograd.grad(kernel(hidden, head, Targets(targets), DFT()).loss_sum, leaf)
        (theirs,) = torch.autograd.grad(chunked(hidden, head, Targets(targets), DFT()).loss_sum, leaf)
        assert torch.equal(ours, theirs)
        assert ours.abs().max() > 0


def test_extreme_logits_are_defined():
    weight = torch.tensor([[1e5], [-1e5], [0.0], [float("-inf")]])
    hidden = torch.tensor([[1.0], [1.0], [1.0]], requires_grad=True)
    result = blocked(hidden, Head(weight[:3]), Targets(torch.tensor([0, 1, 2])), DFT())
    assert result.rows.logp_T.tolist() == [0.0, -2e5, -1e5]
    result.loss_sum.backward()
    assert torch.equal(hidden.grad, torch.zeros(3, 1))
    minus_infinity = blocked(hidden.detach(), Head(weight), Targets(torch.tensor([3, 0, 0])), DFT())
    assert minus_infinity.rows.logp_T.tolist() == [float("-inf"), 0.0, 0.0]
    assert minus_infinity.loss_sum == 0


def test_auto_takes_it_for_a_frozen_head_on_a_cpu_only():
    assert choose("cpu", trained=False) is blocked
    assert choose("cpu", trained=True) is chunked
    assert choose("cuda", trained=False) is chunked
