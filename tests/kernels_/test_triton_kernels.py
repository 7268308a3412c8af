"""Each kernel that scores rows of logits, by the Triton kernel: on a GPU (`-m gpu`), or interpreted (`nox -s aot`)."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from support import fused, oracle, problems

from dft_plugin.kernels import Head, OpaqueHead, Transform, chunked, opaque, score_logits, score_logits_
from dft_plugin.objectives import DFT, Objective, Targets

triton_rows = pytest.importorskip("dft_plugin.kernels.triton_rows", reason="needs triton", exc_type=ImportError)

pytestmark = [fused.FILTER, pytest.mark.parametrize("device", fused.DEVICES)]
EVERYTHING = frozenset({"entropy", "sum_p_squared"})
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Peaked(Objective):
    """w = exp(-entropy)."""

    name: ClassVar = "peaked"
    summary: ClassVar = "exp(-entropy)"
    source: ClassVar = "a test"
    needs: ClassVar = frozenset({"entropy"})

    def weight(self, rows):
        return (-rows.entropy_T).exp()


def linear(trained):
    def score(made, objective, **options):
        made.weight_VD.requires_grad_(trained)
        head = Head(made.weight_VD, transform=Transform(made.scale, made.softcap))
        return chunked(made.hidden_TD, head, Targets(made.targets_T), objective, **options)

    return score


def called(made, objective, **options):
    head = OpaqueHead(
        lambda hidden: hidden @ made.weight_VD.T,
        made.weight_VD.shape[0],
        Transform(made.scale, made.softcap),
        (made.weight_VD,),
    )
    return opaque(made.hidden_TD, head, Targets(made.targets_T), objective, **options)


def materialised(score_chunk, *, ignored):
    def score(made, objective, **options):
        logits_TV = Transform(made.scale, made.softcap)(made.hidden_TD @ made.weight_VD.T) * 1
        kept_N = torch.ones(len(logits_TV), dtype=torch.bool, device=logits_TV.device)
        if ignored:
            logits_TV = torch.cat([logits_TV[:3], logits_TV[:2], logits_TV[3:]])
            kept_N = torch.ones(len(logits_TV), dtype=torch.bool, device=logits_TV.device)
            kept_N[3:5] = False
        return score_chunk(logits_TV, kept_N, Targets(made.targets_T), objective, **options)

    return score


WAYS = {
    "chunked, frozen": linear(trained=False),
    "chunked, trained": linear(trained=True),
    "opaque": called,
    "logits": materialised(score_logits, ignored=False),
    "logits, in place": materialised(score_logits_, ignored=False),
    "logits, some ignored": materialised(score_logits, ignored=True),
    "logits, in place, some ignored": materialised(score_logits_, ignored=True),
}


@pytest.mark.parametrize("objective", [DFT(), Peaked()], ids=["dft", "peaked"])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_loss_and_gradients_of_each_kernel_come_from_it(monkeypatch, device, way, dtype, softcap, objective):
    made = problems.problem((23, 16, 517), dtype=dtype, scale=0.5, softcap=softcap)
    logits_TV = made.logits()
    logp_T = oracle.log_probabilities(logits_TV, made.targets_T)
    entropy_T = torch.special.entr(logits_TV.detach().softmax(1)).sum(1)
    weight_T = (logp_T.exp() if isinstance(objective, DFT) else (-entropy_T).exp()).detach()
    truth = -(weight_T * logp_T).sum()
    true_gradients = torch.autograd.grad(truth, [made.hidden_TD, made.weight_VD])

    scorer = fused.scorer_for(device, monkeypatch)
    there = problems.problem((23, 16, 517), dtype=dtype, scale=0.5, softcap=softcap)
    for name in ("hidden_TD", "weight_VD", "targets_T"):
        tensor = getattr(there, name).detach().to(device)
        object.__setattr__(there, name, tensor.requires_grad_(tensor.is_floating_point()))
    result = WAYS[way](there, objective, needs=EVERYTHING)
    inputs = [tensor for tensor in (there.hidden_TD, there.weight_VD) if tensor.requires_grad]
    gradients = [tensor.cpu() for tensor in torch.autograd.grad(result.loss_sum, inputs)]

    assert scorer._trusted, "the kernel ran"
    assert scorer._fused
    eps = torch.finfo(dtype).eps
    assert result.loss_sum.item() == pytest.approx(truth.item(), rel=max(4 * eps, 2e-6))
    assert oracle.gap(result.weight_T.cpu(), weight_T) < max(8 * eps, 1e-5)
    assert oracle.gap(gradients, true_gradients[: len(gradients)]) < max(8 * eps, 1e-5)


@pytest.mark.parametrize("score_chunk", [score_logits, score_logits_])
def test_the_tail_of_a_row_with_a_small_weight_keeps_its_digits_in_float16(monkeypatch, device, score_chunk):
    # Relative to 1 - p the tail is below 2e-7: with a row's peak at 8, float16 would hold 4 bits of it.
    logits_TV, targets_T = torch.zeros(2, 2000, dtype=torch.float16), torch.tensor([7, 1999])
    logits_TV[:, 1000:] = -9.0
    logits_TV.scatter_(1, targets_T[:, None], 2.0)
    truth_TV = 2**20 * 2 * oracle.logits_gradient(logits_TV, targets_T)
    fused.scorer_for(device, monkeypatch)
    leaf_TV, targets_T = logits_TV.to(device).requires_grad_(), targets_T.to(device)
    kept_T = torch.ones_like(targets_T, dtype=torch.bool)
    loss_sum = score_chunk(leaf_TV.clone(), kept_T, Targets(targets_T), DFT()).loss_sum
    (gradient_TV,) = torch.autograd.grad(2**20 * loss_sum, leaf_TV)
    assert oracle.gap(gradient_TV.cpu()[:, 1000:1999], truth_TV[:, 1000:1999]) < 2e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_that_may_be_overwritten_are_scored_in_one_launch_whatever_their_number(monkeypatch, device, dtype):
    heights, score_whole_ = [], triton_rows.score_whole_

    def count(logits_TV, *arguments, **options):
        heights.append(len(logits_TV))
        return score_whole_(logits_TV, *arguments, **options)

    fused.scorer_for(device, monkeypatch)
    monkeypatch.setattr(triton_rows, "score_whole_", count)
    # A block of a CPU holds a quarter of them.
    logits_TV = torch.zeros(4, 1 << 19, dtype=dtype, device=device, requires_grad=True)
    targets_T = torch.arange(4, device=device)
    score_logits_(logits_TV * 1, targets_T >= 0, Targets(targets_T), DFT())
    assert heights == [4, 4], "the comparison, and all"
