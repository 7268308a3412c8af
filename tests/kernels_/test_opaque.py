"""A head that can only be called."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch
from support import oracle, problems
from torch.nn import functional as F

from dft_plugin.kernels import Head, OpaqueHead, Transform, chunked, opaque
from dft_plugin.objectives import DFT, Targets

SHAPE = (150, 5, 11)
CHUNKS_OF_64 = {"scratch_bytes": 0}


class Projection:
    """The head of a problem, which counts its calls and the tokens of each."""

    def __init__(self, made):
        self.made = made
        self.tokens = []

    def __call__(self, hidden_CD):
        self.tokens.append(len(hidden_CD))
        return F.linear(hidden_CD, self.made.weight_VD, self.made.bias_V)

    def score(self, **options):
        made = self.made
        parameters = tuple(made.inputs[1:])
        head = OpaqueHead(self, made.weight_VD.shape[0], Transform(made.scale, made.softcap), parameters)
        return opaque(made.hidden_TD, head, Targets(made.targets_T), DFT(), **options)


def problem(**changes):
    return problems.problem(SHAPE, bias=True, scale=0.5, softcap=5.0, **changes)


def test_it_equals_the_chunked_kernel():
    made = problem()
    head = Head(made.weight_VD, made.bias_V, Transform(made.scale, made.softcap))
    theirs = chunked(made.hidden_TD, head, Targets(made.targets_T), DFT(), **CHUNKS_OF_64)
    ours = Projection(made).score(**CHUNKS_OF_64)
    assert ours.loss_sum.item() == pytest.approx(theirs.loss_sum.item(), rel=1e-6)
    assert oracle.gap(ours.weight_T, theirs.weight_T) < 1e-6
    gradients = torch.autograd.grad(ours.loss_sum, made.inputs)
    assert oracle.gap(gradients, torch.autograd.grad(theirs.loss_sum, made.inputs)) < 1e-6


def test_the_size_of_a_chunk_changes_nothing():
    made = problem()
    small, large = Projection(made), Projection(made)
    of_small, of_large = small.score(**CHUNKS_OF_64), large.score()
    assert small.tokens == [50, 50, 50]
    assert large.tokens == [150]
    assert of_small.loss_sum.item() == pytest.approx(of_large.loss_sum.item(), rel=1e-6)
    assert oracle.gap(of_small.rows.logp_T, of_large.rows.logp_T) < 1e-6
    gradients = torch.autograd.grad(of_small.loss_sum, made.inputs)
    assert oracle.gap(gradients, torch.autograd.grad(of_large.loss_sum, made.inputs)) < 1e-6


def test_the_head_is_called_in_the_forward_pass_only():
    projection = Projection(problem())
    loss_sum = projection.score(**CHUNKS_OF_64).loss_sum
    assert projection.tokens == [50] * 3
    loss_sum.backward()
    assert projection.tokens == [50] * 3


def test_a_second_backward_pass_makes_the_gradients_again():
    projection = Projection(problem())
    loss_sum = projection.score(**CHUNKS_OF_64).loss_sum
    first = torch.autograd.grad(loss_sum, projection.made.inputs, retain_graph=True)
    again = torch.autograd.grad(3 * loss_sum, projection.made.inputs)
    assert oracle.gap([gradient / 3 for gradient in again], first) < 1e-6


def in_sixteens(made):
    """A head that refuses any number of rows but 16, 32 ..."""

    def project(hidden_CD):
        assert len(hidden_CD) > 0
        assert len(hidden_CD) % 16 == 0
        return F.linear(hidden_CD, made.weight_VD, made.bias_V)

    return project


def test_padded_rows_reach_the_head_and_nothing_else():
    made = problem()
    expected = Projection(made).score()
    head = OpaqueHead(
        in_sixteens(made),
        made.weight_VD.shape[0],
        Transform(made.scale, made.softcap),
        (made.weight_VD, made.bias_V),
        row_multiple=16,
    )
    for options in (CHUNKS_OF_64, {}):
        ours = opaque(made.hidden_TD, head, Targets(made.targets_T), DFT(), **options)
        assert ours.loss_sum.item() == pytest.approx(expected.loss_sum.item(), rel=1e-6)
        assert ours.weight_T.shape == made.targets_T.shape
        gradients = torch.autograd.grad(ours.loss_sum, made.inputs, retain_graph=True)
        assert oracle.gap(gradients, torch.autograd.grad(expected.loss_sum, made.inputs, retain_graph=True)) < 1e-6


def test_without_a_token_such_a_head_is_called_all_the_same():
    # Its weight may lie on several ranks, which all have to gather it.
    made = problem()
    called = []

    def project(hidden_CD):
        called.append(len(hidden_CD))
        return in_sixteens(made)(hidden_CD)

    head = OpaqueHead(project, SHAPE[2], Transform(0.5, 5.0), (made.weight_VD, made.bias_V), row_multiple=16)
    hidden = made.hidden_TD.detach()[:0].requires_grad_()
    result = opaque(hidden, head, Targets(made.targets_T[:0]), DFT(), needs=frozenset({"entropy"}))
    assert called == [16]
    assert result.loss_sum == 0
    assert result.rows.entropy_T.shape == result.weight_T.shape == (0,)
    for gradient in torch.autograd.grad(result.loss_sum, [hidden, made.weight_VD, made.bias_V]):
        assert not gradient.abs().sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sum_leaves_in_float32_whatever_the_head_returns(dtype):
    made = problem(dtype=dtype)
    assert Projection(made).score().loss_sum.dtype == torch.float32


def test_the_sum_of_a_float64_head_is_float64():
    made = problem(dtype=torch.float64)
    truth, *true_gradients = made.truth()
    loss_sum = Projection(made).score().loss_sum
    assert loss_sum.dtype == torch.float64
    assert loss_sum.item() == pytest.approx(SHAPE[0] * truth.item(), rel=1e-12)
    gradients = torch.autograd.grad(loss_sum / SHAPE[0], made.inputs)
    assert oracle.gap(gradients, true_gradients) < 1e-12


def test_a_second_backward_calls_the_head_under_the_autocast_of_the_first():
    projection = Projection(problem())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_sum = projection.score().loss_sum
    first = torch.autograd.grad(loss_sum, projection.made.inputs, retain_graph=True)
    assert all(map(torch.equal, torch.autograd.grad(loss_sum, projection.made.inputs), first))


def test_a_head_that_works_in_float32_under_autocast_gets_its_gradients_in_float32():
    projection = Projection(problem())

    def in_float32(hidden_CD):
        with torch.autocast("cpu", enabled=False):
            return projection(hidden_CD.float())

    made = projection.made
    head = OpaqueHead(in_float32, made.weight_VD.shape[0], Transform(made.scale, made.softcap), tuple(made.inputs[1:]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = opaque(made.hidden_TD, head, Targets(made.targets_T), DFT()).loss_sum
    without = projection.score().loss_sum
    pairs = zip(torch.autograd.grad(under, made.inputs), torch.autograd.grad(without, made.inputs), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def logits_alive(V):
    # By type: to ask some of these objects for their class brings a warning.
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return [tensor.shape for tensor in tensors if tensor.shape[-1:] == (V,)]


def test_no_chunk_of_logits_is_there_when_the_next_is_made():
    made = problems.problem((150, 5, 4001))
    seen = []

    def project(hidden_CD):
        seen.append(logits_alive(4001))
        return F.linear(hidden_CD, made.weight_VD)

    head = OpaqueHead(project, 4001, parameters=(made.weight_VD,))
    opaque(made.hidden_TD, head, Targets(made.targets_T), DFT(), **CHUNKS_OF_64).loss_sum.backward()
    assert seen == [[], [], []]


def test_after_the_forward_pass_no_chunk_of_logits_or_of_their_gradient_is_kept():
    made = problems.problem((150, 5, 4001))
    result = Projection(made).score(**CHUNKS_OF_64)
    assert logits_alive(4001) == []
    result.loss_sum.backward()


def test_a_frozen_head_still_teaches_the_hidden_states():
    made = problem()
    frozen = dataclasses.replace(made, weight_VD=made.weight_VD.detach(), bias_V=made.bias_V.detach())
    Projection(frozen).score().loss_sum.backward()
    assert oracle.gap(made.hidden_TD.grad / SHAPE[0], made.truth()[1]) < 1e-5
    assert made.weight_VD.grad is None


def test_the_transform_of_half_precision_logits_is_taken_in_float32():
    made = problem(dtype=torch.bfloat16)
    raw_TV = F.linear(made.hidden_TD, made.weight_VD, made.bias_V).detach().double()
    capped_TV = 5.0 * torch.tanh(0.5 * raw_TV / 5.0)
    truth_T = oracle.log_probabilities(capped_TV, made.targets_T)
    assert oracle.gap(Projection(made).score().rows.logp_T, truth_T) < 1e-6
