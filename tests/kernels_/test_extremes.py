"""Every kernel where p is next to nothing or next to one; and that blocks and chunks of any size give the same."""

from __future__ import annotations

import sys

import pytest
import torch
from support import oracle, problems

from dft_plugin.kernels import Head, OpaqueHead, Transform, blocked, chunked, gemm, opaque, score_logits, score_logits_
from dft_plugin.objectives import DFT, NLL, Targets

T, V = 40, 97
PROBABILITIES = [1e-30, 1e-9, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-6, 1 - 1e-9]


def behind_a_frozen_head(kernel):
    """The identity as a head, so that the hidden states are the logits."""

    def score(logits_TV, targets_T, objective):
        return kernel(
            logits_TV, Head(torch.eye(V)), Targets(targets_T), objective, needs=frozenset(), scratch_bytes=None
        )

    return score


def behind_a_trained_head(logits_TV, targets_T, objective):
    return chunked(logits_TV, Head(torch.eye(V, requires_grad=True)), Targets(targets_T), objective)


def behind_a_closed_head(logits_TV, targets_T, objective):
    return opaque(logits_TV, OpaqueHead(lambda hidden: hidden * 1, V), Targets(targets_T), objective)


def everything_kept(kernel):
    def score(logits_TV, targets_T, objective):
        return kernel(logits_TV * 1, torch.ones_like(targets_T, dtype=torch.bool), Targets(targets_T), objective)

    return score


WAYS = {
    "chunked": behind_a_frozen_head(chunked),
    "chunked, trained": behind_a_trained_head,
    "blocked": behind_a_frozen_head(blocked),
    "opaque": behind_a_closed_head,
    "logits": everything_kept(score_logits),
    "logits, in place": everything_kept(score_logits_),
}


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize(("objective", "weigh"), [(DFT(), oracle.dft), (NLL(), oracle.nll)], ids=["dft", "nll"])
@pytest.mark.parametrize("way", WAYS)
def test_loss_and_gradient_keep_their_digits(way, objective, weigh, p):
    logits_TV, targets_T = problems.logits_with_probability(p, T=T, V=V)
    logits_TV.requires_grad_()
    result = WAYS[way](logits_TV, targets_T, objective)
    (gradient_TV,) = torch.autograd.grad(result.loss_sum, logits_TV)
    truth_T = oracle.token_losses(logits_TV.detach(), targets_T, weigh)
    assert result.loss_sum.item() == pytest.approx(truth_T.sum().item(), rel=3e-6, abs=0)
    true_gradient_TV = T * oracle.logits_gradient(logits_TV.detach(), targets_T, weigh)
    assert oracle.gap(gradient_TV, true_gradient_TV) < 1e-5


def test_the_naive_formula_does_not():
    # The test above can fail: this is what hosts compute, and p is 1 in float32.
    logits_TV, targets_T = problems.logits_with_probability(1 - 1e-9, T=T, V=V)
    nll_T = torch.nn.functional.cross_entropy(logits_TV, targets_T, reduction="none")
    truth_T = oracle.token_losses(logits_TV, targets_T)
    assert abs((nll_T * (-nll_T).exp()).sum().item() / truth_T.sum().item() - 1) > 0.5


@pytest.mark.parametrize("rows", [1, 7, 64, 517])
@pytest.mark.parametrize("transform", [Transform(), Transform(0.5, 5.0)], ids=["plain", "capped"])
def test_the_size_of_a_block_changes_nothing(monkeypatch, transform, rows):
    made = problems.problem((67, 33, 517), bias=True, scale=transform.scale, softcap=transform.softcap)
    truth, true_gradient, *_ = made.truth()
    made.weight_VD.requires_grad_(False)
    made.bias_V.requires_grad_(False)
    module = sys.modules["dft_plugin.kernels.linear_blocked"]
    monkeypatch.setattr(module, "_BLOCK_ROWS", (rows, rows))
    monkeypatch.setattr(module, "_PASS_TOKENS", 29)
    head = Head(made.weight_VD, made.bias_V, transform)
    result = blocked(made.hidden_TD, head, Targets(made.targets_T), DFT(), needs=frozenset({"entropy"}))
    assert result.loss_sum.item() / 67 == pytest.approx(truth.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(result.loss_sum / 67, made.hidden_TD)
    assert oracle.gap(gradient, true_gradient) < 1e-5
    p_TV = made.logits().detach().softmax(1)
    assert oracle.gap(result.rows.entropy_T, torch.special.entr(p_TV).sum(1)) < 1e-6


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("faster", [True, False], ids=["half GEMMs", "float32 GEMMs"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_right_whichever_the_cpu_is_faster_in(monkeypatch, dtype, faster, bias):
    monkeypatch.setattr(gemm, "half_is_faster", lambda dtype: faster)
    made = problems.problem((67, 33, 517), dtype=dtype, bias=bias)
    truth, true_gradient, *_ = made.truth()
    for tensor in made.inputs[1:]:
        tensor.requires_grad_(False)
    head = Head(made.weight_VD, made.bias_V)
    result = blocked(made.hidden_TD, head, Targets(made.targets_T), DFT())
    (gradient,) = torch.autograd.grad(result.loss_sum, made.hidden_TD)
    # float32 GEMMs leave the rounding of the gradient alone; half GEMMs round the logits too.
    allowed = torch.finfo(dtype).eps * (6 if faster else 0.5)
    assert oracle.gap(gradient, 67 * true_gradient) < allowed
    assert result.loss_sum.item() == pytest.approx(67 * truth.item(), rel=allowed if faster else 2e-6)
    logp_T = oracle.log_probabilities(made.logits().detach(), made.targets_T)
    assert oracle.gap(result.rows.logp_T, logp_T) < (allowed if faster else 1e-6)


@pytest.mark.parametrize("needs", [frozenset(), frozenset({"entropy", "sum_p_squared"})], ids=["plain", "statistics"])
@pytest.mark.parametrize("transform", [Transform(), Transform(1.0, 3e38)], ids=["folded", "capped"])
@pytest.mark.parametrize("largest", [1e4, 1e31, 2e38])
def test_logits_of_any_size_that_bits_can_hold_are_no_nan(largest, transform, needs):
    logits_TV, targets_T = problems.logits_with_probability(0.3, T=T, V=V)
    logits_TV = (logits_TV * (largest / logits_TV.abs().max())).requires_grad_()
    head = Head(torch.eye(V), transform=transform)
    result = blocked(logits_TV, head, Targets(targets_T), DFT(), needs=needs)
    (gradient_TV,) = torch.autograd.grad(result.loss_sum, logits_TV)
    assert gradient_TV.isfinite().all()
    assert result.loss_sum.isfinite()
    if needs:
        entropy_T = torch.special.entr(transform(logits_TV.detach().double()).softmax(1)).sum(1)
        assert (result.rows.entropy_T - entropy_T).abs().max() < 1e-2
        assert result.rows.sum_p_squared_T.isfinite().all()


def test_what_is_capped_keeps_the_digits_of_large_logits():
    # Bits of the logits themselves would be rounded: of their distances they are not.
    logits_TV, targets_T = problems.logits_with_probability(0.3, T=T, V=V)
    large_TV, transform = (logits_TV + 1000).round(decimals=3), Transform(1.0, 1e5)
    result = blocked(large_TV, Head(torch.eye(V), transform=transform), Targets(targets_T), DFT())
    there = chunked(large_TV, Head(torch.eye(V), transform=transform), Targets(targets_T), DFT())
    assert oracle.gap(result.rows.logp_T, there.rows.logp_T) < 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_a_second_derivative_is_refused(way):
    logits_TV, targets_T = problems.logits_with_probability(0.3, T=T, V=V)
    logits_TV.requires_grad_()
    loss_sum = WAYS[way](logits_TV, targets_T, DFT()).loss_sum
    with pytest.raises(RuntimeError, match=r"create_graph=True: .* Use `kernel: reference`"):
        torch.autograd.grad(loss_sum, logits_TV, create_graph=True)
