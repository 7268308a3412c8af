"""Scoring logits that exist already."""

from __future__ import annotations

import pytest
import torch
from support import oracle, problems

from dft_plugin.kernels import may_overwrite, score_logits, score_logits_
from dft_plugin.objectives import DFT, NLL, Targets


def leaf(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*size, generator=generator).to(dtype).requires_grad_()


def score(logits_NV, labels, objective=None):
    labels_N = torch.tensor(labels) if isinstance(labels, list) else labels
    kept_N = labels_N != -100
    return score_logits(logits_NV, kept_N, Targets(labels_N[kept_N]), objective or DFT())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_logits_stay_as_they_are_for_metrics(dtype):
    logits_NV = leaf(4, 7, dtype=dtype)
    before = logits_NV.detach().clone()
    score(logits_NV, [3, -100, 0, 6]).loss_sum.backward()
    assert torch.equal(logits_NV.detach(), before)


def test_an_ignored_row_has_a_gradient_of_zero():
    logits_NV = leaf(4, 7)
    score(logits_NV, [3, -100, 0, -100]).loss_sum.backward()
    assert logits_NV.grad[[1, 3]].abs().max() == 0
    assert logits_NV.grad[[0, 2]].abs().amin(1).min() > 0


def test_rows_keep_their_places_around_ignored_ones():
    logits_NV, labels_N = leaf(6, 7), torch.tensor([-100, 3, -100, -100, 5, 0])
    kept_N = labels_N != -100
    result = score(logits_NV, labels_N)
    result.loss_sum.backward()
    logits_TV, targets_T = logits_NV.detach()[kept_N], labels_N[kept_N]
    truth_TV = 3 * oracle.logits_gradient(logits_TV, targets_T)
    assert oracle.gap(logits_NV.grad[kept_N], truth_TV) < 1e-6
    assert oracle.gap(result.rows.logp_T, oracle.log_probabilities(logits_TV, targets_T)) < 1e-6


def test_several_working_blocks_score_as_one():
    # A block holds 2 ** 22 logits: 128 rows of 2 ** 15, so 200 make two.
    logits_NV = leaf(200, 2**15)
    targets_T = torch.arange(200) * 7
    result = score(logits_NV, targets_T, NLL())
    result.loss_sum.backward()
    truth = oracle.token_losses(logits_NV.detach(), targets_T, oracle.nll)
    assert result.loss_sum.item() == pytest.approx(truth.sum().item(), rel=1e-6)
    truth_TV = 200 * oracle.logits_gradient(logits_NV.detach(), targets_T, oracle.nll)
    assert oracle.gap(logits_NV.grad, truth_TV) < 1e-5


def test_an_upstream_factor_reaches_the_gradient():
    once, thrice = leaf(2, 5), leaf(2, 5)
    score(once, [1, 2]).loss_sum.backward()
    (3 * score(thrice, [1, 2]).loss_sum).backward()
    assert oracle.gap(thrice.grad, 3 * once.grad) < 1e-6


@pytest.mark.parametrize("scorer", [score_logits, score_logits_])
def test_a_loss_scale_keeps_the_tail_of_a_row_with_a_small_weight_in_float16(scorer):
    # w * p_j is below 2e-8, which float16 does not have; the scale of a GradScaler lifts it to 1e-3.
    logits_TV, targets_T = torch.zeros(2, 20_000, dtype=torch.float16), torch.tensor([7, 19_999])
    logits_TV.scatter_(1, targets_T[:, None], 2.0).requires_grad_()
    kept_T = torch.ones(2, dtype=torch.bool)
    # The clone is no leaf, so it may be overwritten.
    loss = 65536 * scorer(logits_TV.clone(), kept_T, Targets(targets_T), DFT()).loss_sum
    (gradient_TV,) = torch.autograd.grad(loss, logits_TV)
    truth_TV = 65536 * 2 * oracle.logits_gradient(logits_TV.detach(), targets_T)
    assert 0 < truth_TV.abs().min() < 65536 * 2e-8
    tail = torch.ones_like(truth_TV, dtype=torch.bool).scatter(1, targets_T[:, None], False)
    assert oracle.gap(gradient_TV[tail], truth_TV[tail]) < 2e-3


def test_a_second_backward_over_a_retained_graph_gives_the_same_gradient():
    logits_NV = leaf(2, 5)
    loss_sum = score(logits_NV, [1, 2]).loss_sum
    (first,) = torch.autograd.grad(loss_sum, logits_NV, retain_graph=True)
    (second,) = torch.autograd.grad(loss_sum, logits_NV)
    assert torch.equal(first, second)
    assert first.abs().max() > 0


def test_without_a_gradient_wanted_there_is_no_graph():
    logits_NV = leaf(2, 5)
    assert not score(logits_NV.detach(), [1, 2]).loss_sum.requires_grad
    with torch.no_grad():
        assert not score(logits_NV, [1, 2]).loss_sum.requires_grad


def test_autocast_does_not_touch_the_numbers():
    logits_TV, targets_T = problems.logits_with_probability(1 - 1e-6, T=20, V=11)
    logits_TV.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_sum = score(logits_TV, targets_T).loss_sum
        loss_sum.backward()
    truth = oracle.token_losses(logits_TV.detach(), targets_T).sum()
    assert loss_sum.item() == pytest.approx(truth.item(), rel=1e-6)
    truth_TV = 20 * oracle.logits_gradient(logits_TV.detach(), targets_T)
    assert oracle.gap(logits_TV.grad, truth_TV) < 1e-5


def scored_in_place(labels, dtype=torch.float32):
    """Logits of a graph, scored in place, and the leaf behind them."""
    raw_NV = leaf(len(labels), 7, dtype=dtype)
    logits_NV = raw_NV * 1
    labels_N = torch.tensor(labels)
    kept_N = labels_N != -100
    return raw_NV, logits_NV, score_logits_(logits_NV, kept_N, Targets(labels_N[kept_N]), DFT())


@pytest.mark.parametrize("labels", [[3, 0, 6, 6], [3, -100, 0, -100], [-100, -100, -100, -100]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_overwritten_logits_give_the_same_numbers(dtype, labels):
    raw_NV, _, result = scored_in_place(labels, dtype)
    kept_NV = leaf(4, 7, dtype=dtype)
    expected = score(kept_NV, labels)
    (3 * result.loss_sum).backward()
    (3 * expected.loss_sum).backward()
    assert torch.equal(result.rows.logp_T, expected.rows.logp_T)
    assert result.loss_sum.item() == pytest.approx(expected.loss_sum.item(), rel=1e-6)
    # The upstream factor meets the rounded gradient here, the unrounded one there.
    assert torch.allclose(raw_NV.grad, kept_NV.grad, rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_takes_the_place_of_the_logits(dtype):
    _, logits_NV, result = scored_in_place([3, -100, 0, 6], dtype)
    (gradient,) = torch.autograd.grad(result.loss_sum, logits_NV)
    assert gradient.data_ptr() == logits_NV.data_ptr()
    assert gradient[1].abs().max() == 0


def test_a_graph_whose_logits_were_overwritten_serves_once():
    raw_NV, _, result = scored_in_place([3, 0])
    result.loss_sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="serves once"):
        result.loss_sum.backward()
    assert raw_NV.grad is not None


def test_only_logits_that_no_backward_reads_may_be_overwritten():
    hidden, weight = leaf(4, 3), leaf(7, 3)
    projected = hidden @ weight.t()
    assert may_overwrite(projected)
    assert may_overwrite(projected.view(2, 2, 7))
    assert may_overwrite(5 * projected.tanh())
    assert may_overwrite(projected.bfloat16().float())
    assert not may_overwrite(projected.tanh())
    assert not may_overwrite(projected.tanh().view(2, 2, 7))
    assert not may_overwrite(projected[:, :5])
    assert not may_overwrite(hidden)
    assert not may_overwrite(projected.detach())


def test_autograd_refuses_where_the_logits_are_read_again_all_the_same():
    logits_NV = leaf(2, 7).tanh()
    targets_T = torch.tensor([3, 0])
    result = score_logits_(logits_NV, torch.ones(2, dtype=torch.bool), Targets(targets_T), DFT())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.loss_sum.backward()
