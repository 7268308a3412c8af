"""Half precision under a loss scale: each kernel as near to float64 as autograd's textbook in it, or nearer.

The loss scale of a GradScaler comes after the forward pass in which the kernels make their gradients.
"""

from __future__ import annotations

import sys
from functools import cache

import pytest
import torch
from support import oracle, problems
from support.halves import (
    A_LITTLE,
    HEADS,
    PROBABILITIES,
    SCALES,
    D,
    V,
    called,
    gaps,
    head_of,
    in_dtype,
    problem,
    read,
    textbook,
    through_blocks,
    truths_of,
)
from torch.nn import functional as F

from dft_plugin.kernels import chunked, gemm, products, score_logits, score_logits_
from dft_plugin.objectives import DFT, NLL, Targets

HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("way", [read, called])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("alpha", [1.0, pytest.param(2.0, marks=pytest.mark.full)])
@pytest.mark.parametrize("p", [*PROBABILITIES, "all"])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_trained_head_is_as_near_to_the_truth_as_the_textbook(dtype, p, alpha, scale, head, way):
    made = problem(p, dtype=dtype, **HEADS[head])
    truths = truths_of(made, oracle.family(alpha))
    for num_items in (1, 64, 4096):
        ours = gaps(way(made, DFT(alpha=alpha)), made, truths, scale, num_items)
        theirs = gaps(textbook(made, DFT(alpha=alpha)), made, truths, scale, num_items)
        # A product may sum in another order where rows are padded, and which way a logit is rounded is luck.
        assert all(one <= 1.1 * other + A_LITTLE[dtype] for one, other in zip(ours, theirs, strict=True)), (
            num_items,
            ours,
            theirs,
        )


@pytest.mark.parametrize("way", [read, called, through_blocks])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("p", [*PROBABILITIES, "all"])
@pytest.mark.parametrize("dtype", HALVES)
def test_so_is_a_frozen_one(monkeypatch, dtype, p, scale, way):
    made = problem(p, dtype=dtype)
    truth = truths_of(made)[0] * (scale / 64)
    made.weight_VD.requires_grad_(False)
    (theirs,) = torch.autograd.grad(textbook(made, DFT()) / 64 * scale, made.hidden_TD)
    for faster in (True, False):
        monkeypatch.setattr(gemm, "half_is_faster", lambda dtype, faster=faster: faster)
        (ours,) = torch.autograd.grad(way(made, DFT()) / 64 * scale, made.hidden_TD)
        assert oracle.gap(ours, truth) <= oracle.gap(theirs, truth) + A_LITTLE[dtype]


@pytest.mark.parametrize("scorer", [score_logits, score_logits_])
@pytest.mark.parametrize("p", [1e-7, 1e-4, 0.5, 1 - 1e-4, 1 - 1e-7])
@pytest.mark.parametrize("dtype", HALVES)
def test_so_are_logits_that_exist(dtype, p, scorer):
    raw_TV, targets_T = problems.logits_with_probability(p, T=40, V=97)
    raw_TV = raw_TV.to(dtype).requires_grad_()
    kept_T = torch.ones_like(targets_T, dtype=torch.bool)
    for scale in SCALES:
        truth_TV = scale * oracle.logits_gradient(raw_TV.detach(), targets_T)
        (ours,) = torch.autograd.grad(
            scorer(raw_TV * 1, kept_T, Targets(targets_T), DFT()).loss_sum / 40 * scale, raw_TV
        )
        nll_T = F.cross_entropy(raw_TV.float(), targets_T, reduction="none")
        (theirs,) = torch.autograd.grad(((-nll_T.detach()).exp() * nll_T).mean() * scale, raw_TV)
        assert oracle.gap(ours, truth_TV) <= oracle.gap(theirs, truth_TV) + A_LITTLE[dtype]


@pytest.mark.parametrize("way", [read, called])
@pytest.mark.parametrize("alpha", [1.0, pytest.param(2.0, marks=pytest.mark.full)])
@pytest.mark.parametrize("p", [1e-7, "all", 1 - 1e-4])
def test_autocast_with_weights_in_float32_loses_nothing_at_any_loss_scale(p, alpha, way):
    # The usual `fp16: true`; the gradients have room for what float16 has not.
    half = problem(p, bias=True)
    truths = truths_of(half, oracle.family(alpha))
    made = in_dtype(half, torch.float32)
    for scale in SCALES:
        with torch.autocast("cpu", dtype=torch.float16):
            loss_sum = way(made, DFT(alpha=alpha))
        # What is left is the rounding of the logits, on which p depends, and of the products.
        assert max(gaps(loss_sum, made, truths, scale, 64)) < 8e-3


@pytest.mark.parametrize("way", [read, called])
@pytest.mark.parametrize("rows", [64, 4096])
@pytest.mark.parametrize("scale", SCALES)
def test_a_sum_over_many_rows_does_not_overflow(monkeypatch, scale, rows, way):
    # Every row pulls at the same target, along one large coordinate: their sum is 4096 * 40 before it is divided.
    for name in ("linear_chunked", "linear_opaque"):
        monkeypatch.setattr(sys.modules[f"dft_plugin.kernels.{name}"], "chunk_rows", lambda *_, **__: rows)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4096, D, generator=generator) * 0.1
    hidden[:, 0] = 40.0
    weight = torch.randn(V, D, generator=generator) * 0.02
    made = problems.Problem(
        hidden.half(), torch.full((4096,), 7), weight.half(), torch.zeros(V).half(), None, 1.0, None
    )
    for tensor in made.inputs:
        tensor.requires_grad_()
    truths = truths_of(made, oracle.nll)
    _, *of_head = gaps(way(made, NLL()), made, truths, scale, 4096)
    assert max(of_head) < 1e-3


def as_on_cuda(monkeypatch):
    """Round what a GEMM is given to half precision, and not what it returns."""
    monkeypatch.setattr(products, "widening_gemms", lambda *_: frozenset({"mm"}))
    monkeypatch.setattr(products, "_added_whole", lambda *_, **__: False)
    monkeypatch.setattr(products, "_product", lambda left_BC, right_CN, _: left_BC.float() @ right_CN.float())


CHUNKS_OF_4096 = {
    "read": (read, lambda monkeypatch: None),
    "read, with CUDA's products": (read, as_on_cuda),
    "called": (called, lambda monkeypatch: None),
}
NEARLY = {torch.float16: (1.1, 1e-5), torch.bfloat16: (1.5, A_LITTLE[torch.bfloat16] / 4)}
"""Where a product takes half precision, the rounding of a factor for each token comes on top of that of the logits'
gradient: with as many tokens a twentieth in float16."""


@cache
def of_4096(p, alpha, dtype):
    """The tokens, what is true of them, and how far the textbook is from it."""
    made = problem(p, T=4096, dtype=dtype)
    truths = truths_of(made, oracle.family(alpha))
    return made, truths, gaps(textbook(made, DFT(alpha=alpha)), made, truths, 65536.0, 4096)


@pytest.mark.parametrize("way", CHUNKS_OF_4096)
@pytest.mark.parametrize("alpha", [1.0, pytest.param(2.0, marks=pytest.mark.full)])
@pytest.mark.parametrize("p", [1e-7, 1e-4, 0.5, 1 - 1e-4, "all"])
@pytest.mark.parametrize("dtype", HALVES)
def test_nor_does_a_chunk_of_4096_rows_lose_what_the_textbook_keeps(monkeypatch, dtype, p, alpha, way):
    for name in ("linear_chunked", "linear_opaque"):
        monkeypatch.setattr(sys.modules[f"dft_plugin.kernels.{name}"], "chunk_rows", lambda *_, **__: 4096)
    way, prepare = CHUNKS_OF_4096[way]
    prepare(monkeypatch)
    made, truths, theirs = of_4096(p, alpha, dtype)
    ours = gaps(way(made, DFT(alpha=alpha)), made, truths, 65536.0, 4096)
    more, beside = NEARLY[dtype]
    assert all(one <= more * other + beside for one, other in zip(ours, theirs, strict=True)), (ours, theirs)


def test_a_large_activation_does_not_push_the_others_below_float16():
    # One coordinate of 30000 beside others of 1e-3, as the last layer of some models has.
    made = problem("all")
    with torch.no_grad():
        made.hidden_TD.mul_(1e-3)[:, 0] = 30000.0
        made.weight_VD[:, 0] = 0.0
    truth = 1024 * truths_of(made)[1]
    loss_sum = chunked(made.hidden_TD, head_of(made), Targets(made.targets_T), DFT()).loss_sum
    (gradient,) = torch.autograd.grad(1024 * loss_sum, made.weight_VD)
    assert oracle.gap(gradient[:, 1:], truth[:, 1:]) < 1e-3


def test_a_large_weight_does_not_overflow_the_product():
    made = problem(0.5)
    with torch.no_grad():
        made.weight_VD[:, 0] = 2000.0
        made.hidden_TD[:, 0] = 0.0
    truth = truths_of(made)[0]
    (gradient,) = torch.autograd.grad(
        chunked(made.hidden_TD, head_of(made), Targets(made.targets_T), DFT()).loss_sum, made.hidden_TD
    )
    assert gradient.isfinite().all()
    assert oracle.gap(gradient[:, 1:], truth[:, 1:]) < 2e-3


@pytest.mark.gpu
@pytest.mark.parametrize("way", [read, called, through_blocks])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", HALVES)
def test_on_a_gpu_too(dtype, head, way):
    # An odd vocabulary, whose rows are padded there.
    for p in (*PROBABILITIES, "all"):
        here = problem(p, dtype=dtype, **HEADS[head])
        truths = [truth.cuda() for truth in truths_of(here)]
        made = on_gpu(here)
        ours = gaps(way(made, DFT()), made, truths, 65536.0, 64)
        theirs = gaps(textbook(made, DFT()), made, truths, 65536.0, 64)
        assert all(one <= other + A_LITTLE[dtype] for one, other in zip(ours, theirs, strict=True)), (p, ours, theirs)


def on_gpu(made):
    tensors = iter([tensor.detach().cuda().requires_grad_() for tensor in made.inputs])
    hidden_TD, weight_VD = next(tensors), next(tensors)
    bias_V = None if made.bias_V is None else next(tensors)
    low_rank = None if made.low_rank is None else (next(tensors), next(tensors))
    return problems.Problem(hidden_TD, made.targets_T.cuda(), weight_VD, bias_V, low_rank, made.scale, made.softcap)
