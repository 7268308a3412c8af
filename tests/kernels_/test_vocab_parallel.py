"""The vocabulary-parallel kernel: two and four processes (gloo) give what one process gives."""

from __future__ import annotations

import socket
from dataclasses import fields

import pytest
import torch
from support import halves, oracle, problems
from support.vocab_cases import (
    EXTREMES,
    HALF,
    PROBLEMS,
    SPLITS,
    chunks_problem,
    function_inputs,
    run_rank,
    small,
    whole,
    with_every_target,
    with_probability,
)

from dft_plugin import linear_token_loss
from dft_plugin.objectives import DFT, NLL, Rows

pytestmark = pytest.mark.slow

WORLDS = (2, 4)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module", params=WORLDS, ids="{} ranks".format)
def ranks(request, tmp_path_factory):
    """What each rank saw."""
    out = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run_rank, (request.param, free_port(), out), nprocs=request.param)
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(request.param)]


def of_case(ranks, *key):
    return [rank[key] for rank in ranks]


def joined(per_rank):
    """Gradients as one process has them: hidden alike on all ranks, the rows of the head one after the other."""
    hidden, *head = zip(*per_rank, strict=True)
    assert all(torch.equal(hidden[0], other) for other in hidden[1:]), "every rank has the whole gradient"
    return [hidden[0], *(torch.cat(parts) for parts in head)]


def agreed(seen):
    """What all ranks say alike, and the joined gradients."""
    names = ["loss", "weight", *(field.name for field in fields(Rows) if field.name != "added")]
    for name in names:
        assert all(torch.equal(seen[0][name], other[name]) for other in seen[1:]), name
    return {**{name: seen[0][name] for name in names}, "grads": joined([rank["grads"] for rank in seen])}


def assert_equal_to_one_process(ours, made, weight=oracle.dft, objective=None):
    truth, *true_gradients = made.truth(weight)
    assert ours["loss"].item() == pytest.approx(truth.item(), rel=1e-6, abs=0)
    assert oracle.gap(ours["grads"], true_gradients) < 1e-5
    logits_TV = made.logits().detach()
    logp_T = oracle.log_probabilities(logits_TV, made.targets_T)
    assert oracle.gap(ours["logp_T"], logp_T) < 1e-6
    assert oracle.gap(ours["one_minus_p_T"], -logp_T.expm1()) < 2e-6
    # log p is rounded to 4e-6 nats where p is 1e-30.
    assert oracle.gap(ours["weight"], weight(logp_T.exp())) < 4e-6
    p_TV = logits_TV.softmax(1)
    # The entropy of a distribution that is nearly certain is a difference of nearly equal numbers, in `chunked` too.
    assert torch.allclose(ours["entropy_T"].double(), torch.special.entr(p_TV).sum(1), rtol=1e-5, atol=1e-6)
    assert oracle.gap(ours["sum_p_squared_T"], p_TV.square().sum(1)) < 1e-6

    theirs = whole(made, objective)
    assert torch.equal(ours["is_top1_T"], theirs["is_top1_T"])
    assert oracle.gap(ours["grads"], theirs["grads"]) < 1e-5
    assert {name: found.dtype for name, found in ours.items() if name != "grads"} == {
        name: found.dtype for name, found in theirs.items() if name != "grads"
    }


every_split = pytest.mark.parametrize("split", SPLITS)


@pytest.mark.parametrize("kind", PROBLEMS)
@every_split
def test_all_ranks_together_equal_one_process(split, kind, ranks):
    assert_equal_to_one_process(agreed(of_case(ranks, split, kind)), problems.problem(**PROBLEMS[kind]))


@every_split
def test_a_target_may_lie_on_any_rank(split, ranks):
    assert_equal_to_one_process(agreed(of_case(ranks, split, "every target")), with_every_target())


@every_split
def test_another_objective_is_heeded(split, ranks):
    assert_equal_to_one_process(agreed(of_case(ranks, split, "nll")), small(), oracle.nll, NLL())


@pytest.mark.parametrize("p", EXTREMES)
@every_split
def test_a_probability_near_0_or_1_keeps_its_digits(split, p, ranks):
    assert_equal_to_one_process(agreed(of_case(ranks, split, p)), with_probability(p))


@pytest.mark.parametrize("kind", HALF)
@every_split
def test_half_precision_is_as_near_to_the_truth_as_one_process(split, kind, ranks):
    made = problems.problem(dtype=HALF[kind], **PROBLEMS["all"])
    truth, *true_gradients = made.truth()
    ours, theirs = agreed(of_case(ranks, split, kind)), whole(made)
    assert ours["loss"].dtype == torch.float32
    assert {grad.dtype for grad in ours["grads"]} == {HALF[kind]}
    assert oracle.gap(ours["loss"], truth) <= oracle.gap(theirs["loss"], truth) + 2.5e-7
    # The gradient on the hidden states is a sum over ranks of what each has rounded.
    little = 2 * torch.finfo(HALF[kind]).eps
    for one, other, true in zip(ours["grads"], theirs["grads"], true_gradients, strict=True):
        assert oracle.gap(one, true) <= oracle.gap(other, true) + little


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("p", [*halves.PROBABILITIES, "all"])
@every_split
def test_under_a_loss_scale_it_is_as_near_to_the_truth_as_the_textbook_of_one_process(split, p, kind, ranks):
    dtype = HALF[kind]
    made = halves.problem(p, dtype=dtype, **halves.HEADS["vocab"])
    scale = 65536.0 / 64
    truths = [truth * scale for truth in halves.truths_of(made)]
    theirs = torch.autograd.grad(halves.textbook(made, DFT()) * scale, made.inputs)
    ours = joined([seen[dtype, p] for seen in of_case(ranks, split, "halves")])
    # The gradient on the hidden states is a sum over ranks of what each has rounded.
    for one, other, truth in zip(ours, theirs, truths, strict=True):
        assert oracle.gap(one, truth) <= oracle.gap(other, truth) + 2 * halves.A_LITTLE[dtype]


@every_split
def test_the_size_of_a_chunk_changes_nothing(split, ranks):
    for scratch in (0, 100 * 67 * 4, 1 << 30):
        assert_equal_to_one_process(agreed(of_case(ranks, split, "chunks", scratch)), chunks_problem())


@every_split
def test_a_chunk_takes_two_reductions_and_the_hidden_states_one(split, ranks):
    chunks = [60] * 5
    expected = [count for rows in chunks for count in (rows, 4 * rows)] + [300 * 5]
    assert all(calls == expected for calls in of_case(ranks, split, "reductions"))


@pytest.mark.parametrize("frozen", ["hidden", "weight", "weight of rank 0", "bias", "everything"])
@every_split
def test_a_frozen_input_gets_no_gradient_and_the_others_theirs(split, frozen, ranks):
    truths = small().truth()[1:]
    names = ("hidden", "weight", "bias")
    per_rank = [seen[frozen] for seen in of_case(ranks, split, "frozen")]
    for rank, (*grads, reductions) in enumerate(per_rank):
        assert reductions == [12, 24] + ([] if frozen in ("hidden", "everything") else [60])
        for name, grad in zip(names, grads, strict=True):
            off = frozen in (name, "everything") or (frozen == "weight of rank 0" and name == "weight" and rank == 0)
            assert (grad is None) == off
    for index, truth in enumerate(truths):
        grads = [rank[index] for rank in per_rank]
        if all(grad is not None for grad in grads):
            assert oracle.gap(grads[0] if index == 0 else torch.cat(grads), truth) < 1e-5
        elif grads[-1] is not None and grads[-1].numel():
            assert oracle.gap(grads[-1], truth[-len(grads[-1]) :]) < 1e-5


@every_split
def test_no_grad_mode_makes_no_gradient(split, ranks):
    assert all(seen["no grad"] == [False, [12, 24]] for seen in of_case(ranks, split, "frozen"))


@every_split
def test_an_upstream_factor_and_a_second_backward_are_right(split, ranks):
    for found in zip(*of_case(ranks, split, "backward"), strict=True):
        assert oracle.gap(joined(found), small().truth()[1:]) < 1e-5


@every_split
def test_no_token_gives_a_zero_and_zero_gradients(split, ranks):
    for seen in of_case(ranks, split, "nothing"):
        assert seen["loss"] == 0
        assert seen["entropy"].shape == (0,)
        assert not any(grad.abs().sum() for grad in seen["grads"])


@every_split
def test_autocast_runs_the_gemms_in_its_dtype_and_the_softmax_in_float32(split, ranks):
    seen = of_case(ranks, split, "autocast")
    ours = agreed(seen)
    half = problems.problem((12, 5, 11), bias=True, scale=0.5, softcap=5.0, dtype=torch.bfloat16)
    assert oracle.gap(ours["logp_T"], whole(half)["logp_T"]) < 1e-6
    assert {grad.dtype for grad in ours["grads"]} == {torch.float32}
    assert oracle.gap(ours["grads"], half.truth()[1:]) < 3e-2
    again = joined([rank["again"] for rank in seen])
    assert all(map(torch.equal, again, ours["grads"])), "the second backward repeats the forward's autocast"


@every_split
def test_hidden_states_need_not_be_contiguous(split, ranks):
    assert oracle.gap(joined(of_case(ranks, split, "strided")), small().truth()[1:]) < 1e-5


@every_split
def test_the_function_equals_linear_token_loss(split, ranks):
    made, hidden, labels = function_inputs()
    options = {"bias": made.bias_V, "objective": {"alpha": 0.5}, "logit_scale": 0.5, "softcap": 5.0}
    expected = linear_token_loss(hidden, made.weight_VD, labels, num_items=20, **options)
    seen = of_case(ranks, split, "function")
    assert all(loss.item() == pytest.approx(expected.item(), rel=1e-6) for loss, *_ in seen)
    theirs = torch.autograd.grad(expected, made.inputs)
    assert oracle.gap(joined([grads for _, *grads in seen]), theirs) < 1e-5


def test_what_does_not_fit_together_is_refused_on_every_rank(ranks):
    for rank, seen in enumerate(of_case(ranks, "even", "errors")):
        assert seen["labels"].startswith("ShardError: the ranks of the vocabulary were given different inputs")
        assert "different batches belong on different groups" in seen["labels"]
        assert seen["tokens"].startswith("ShardError: the ranks of the vocabulary were given different inputs")
        assert seen["one shape"].startswith("LabelError: " if rank == 1 else "ShardError: rank 1 of the vocabulary")
        assert seen["one objective"].startswith("SettingsError: " if rank == 0 else "ShardError: rank 0 of the voc")
        assert seen["one number"].startswith("LabelError: " if rank == 0 else "ShardError: rank 0 of the vocabulary")
        assert seen["foreign label"].startswith("LabelError: labels hold 11, but the model has 11 logits")
        assert seen["whole head"].startswith("ShardError: the local weight has 11 rows, but the shard gives this rank")
        assert seen["number of ranks"].startswith("ShardError: the rows (11,) do not describe a vocabulary on")


def test_an_even_split_is_that_of_torch_chunk(ranks):
    for V, rows in zip((5, 8, 31), ranks[0]["even", "even"], strict=True):
        chunks = [len(chunk) for chunk in torch.arange(V).chunk(len(ranks))]
        assert list(rows) == chunks + [0] * (len(ranks) - len(chunks))
