"""What a kernel returns, whichever it is: made, joined and handed through autograd in one place."""

from __future__ import annotations

from dataclasses import fields
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
from support import oracle, problems

from dft_plugin.kernels import (
    Head,
    OpaqueHead,
    ShardedHead,
    Transform,
    VocabShard,
    blocked,
    chunked,
    opaque,
    score_logits,
    score_logits_,
    vocab_parallel,
)
from dft_plugin.kernels.results import as_outputs, from_outputs, join
from dft_plugin.kernels.types import KernelResult
from dft_plugin.objectives import DFT, Rows, Targets

FIELDS = [field.name for field in fields(Rows) if field.name != "added"]
EVERYTHING = frozenset({"entropy", "sum_p_squared"})
TRANSFORM = Transform(0.5, 5.0)


@pytest.fixture(scope="module")
def one_rank():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def split(made, **options):
    head = ShardedHead(made.weight_VD, VocabShard.even(517), made.bias_V, TRANSFORM)
    return vocab_parallel(made.hidden_TD, head, Targets(made.targets_T), DFT(), **options)


def read(made, **options):
    return chunked(
        made.hidden_TD, Head(made.weight_VD, made.bias_V, TRANSFORM), Targets(made.targets_T), DFT(), **options
    )


def in_blocks(made, **options):
    head = Head(made.weight_VD.detach(), made.bias_V.detach(), TRANSFORM)
    return blocked(made.hidden_TD, head, Targets(made.targets_T), DFT(), **options)


def raw(made, hidden):
    return torch.nn.functional.linear(hidden, made.weight_VD, made.bias_V)


def called(made, **options):
    head = OpaqueHead(lambda hidden: raw(made, hidden), 517, TRANSFORM, (made.weight_VD, made.bias_V))
    return opaque(made.hidden_TD, head, Targets(made.targets_T), DFT(), **options)


def of_logits(kernel):
    def score(made, **options):
        kept = torch.ones_like(made.targets_T, dtype=torch.bool)
        return kernel(TRANSFORM(raw(made, made.hidden_TD)), kept, Targets(made.targets_T), DFT(), **options)

    score.__name__ = kernel.__name__
    return score


KERNELS = [read, split, in_blocks, called, of_logits(score_logits), of_logits(score_logits_)]


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_returns_the_same_statistics(kernel):
    made = problems.problem((67, 33, 517), bias=True, scale=0.5, softcap=5.0)
    result = kernel(made, needs=EVERYTHING)
    logits_TV = made.logits().detach()
    p_TV = logits_TV.softmax(1)
    logp_T = oracle.log_probabilities(logits_TV, made.targets_T)
    truth = {
        "logp_T": logp_T,
        "one_minus_p_T": -logp_T.expm1(),
        "is_top1_T": logits_TV.argmax(1) == made.targets_T,
        "entropy_T": torch.special.entr(p_TV).sum(1),
        "sum_p_squared_T": p_TV.square().sum(1),
    }
    assert truth.keys() == set(FIELDS)
    for name, expected in truth.items():
        found = getattr(result.rows, name)
        assert oracle.gap(found, expected) < 2e-6, name
        assert found.dtype == (torch.bool if name == "is_top1_T" else torch.float32)
        assert not found.requires_grad
    assert result.loss_sum.requires_grad
    assert oracle.gap(result.weight_T, logp_T.exp()) < 2e-6


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("kernel", KERNELS)
def test_what_nobody_asked_for_is_not_there(kernel):
    rows = kernel(problems.problem((67, 33, 517), bias=True), needs=frozenset()).rows
    assert rows.entropy_T is None
    assert rows.sum_p_squared_T is None


def result_of(*values):
    """One whose statistics are all different, so that none can stand in another's place."""
    rows = Rows(*(torch.tensor(values) + index for index in range(len(FIELDS))))
    named = {"first": torch.tensor(values) - 4, "second": torch.tensor(values) - 3}
    return KernelResult(
        torch.tensor(float(len(values))), rows, torch.tensor(values) - 1, torch.tensor(values) - 2, named
    )


class TwoValues(DFT):
    statistics: ClassVar[tuple[str, ...]] = ("first", "second")


def test_every_field_of_a_result_goes_through_autograd_and_comes_back_in_its_place():
    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            return as_outputs(ctx, result_of(1.0, 2.0))

        @staticmethod
        def backward(ctx, upstream, *_):
            return upstream

    ours, expected = from_outputs(Through.apply(torch.ones((), requires_grad=True)), TwoValues()), result_of(1.0, 2.0)
    assert ours.loss_sum.requires_grad
    assert not ours.weight_T.requires_grad
    assert torch.equal(ours.weight_T, expected.weight_T)
    assert torch.equal(ours.loss_T, expected.loss_T)
    assert {name: value.tolist() for name, value in ours.statistics.items()} == {"first": [-3, -2], "second": [-2, -1]}
    for name in FIELDS:
        found = getattr(ours.rows, name)
        assert torch.equal(found, getattr(expected.rows, name))
        assert not found.requires_grad


def test_joined_results_add_up_and_keep_their_order():
    joined = join([result_of(1.0, 2.0), result_of(7.0)])
    assert joined.loss_sum == 3
    assert joined.weight_T.tolist() == [0, 1, 6]
    assert joined.loss_T.tolist() == [-1, 0, 5]
    assert joined.statistics["second"].tolist() == [-2, -1, 4]
    for index, name in enumerate(FIELDS):
        assert getattr(joined.rows, name).tolist() == [1 + index, 2 + index, 7 + index]
