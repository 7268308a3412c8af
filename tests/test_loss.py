"""From hidden states or logits to the loss of a step: masks, counts, and the only division."""

from __future__ import annotations

import math

import pytest
import torch
from support import oracle, problems
from torch.utils.flop_counter import FlopCounterMode

from dft_plugin.core.loss import hidden_loss, logits_loss, normalise
from dft_plugin.core.plan import LossPlan
from dft_plugin.core.stats import Sum
from dft_plugin.errors import LabelError
from dft_plugin.kernels import Head, OpaqueHead, chunked
from dft_plugin.objectives import DFT, NLL

IGNORED = -100
V, D = 11, 5
PLAN = LossPlan(objective=DFT(), kernel=chunked, path="lean", scratch_bytes=1 << 20)
WEIGHT = torch.randn(V, D, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([[3, IGNORED, 7, 0], [IGNORED, 10, 5, IGNORED]])


def hidden_states(*leading: int) -> torch.Tensor:
    return torch.randn(*leading, D, generator=torch.Generator().manual_seed(2))


def by_logits(hidden, labels, **options):
    return logits_loss(PLAN, hidden @ WEIGHT.t(), labels, **options)


def by_head(hidden, labels, **options):
    return hidden_loss(PLAN, hidden, Head(WEIGHT), labels, **options)


def by_opaque_head(hidden, labels, **options):
    head = OpaqueHead(lambda hidden_TD: hidden_TD @ WEIGHT.t(), V)
    return hidden_loss(PLAN, hidden, head, labels, **options)


every_way = pytest.mark.parametrize("score", [by_logits, by_head, by_opaque_head])


@every_way
def test_only_positions_with_a_label_are_scored(score):
    hidden = hidden_states(2, 4)
    result = score(hidden, LABELS)
    truth_T = oracle.token_losses(hidden @ WEIGHT.t(), LABELS)
    assert result.count == 5
    assert result.targets.ids_T.tolist() == [3, 7, 0, 10, 5]
    assert result.loss_sum.item() == pytest.approx(truth_T.sum().item(), rel=1e-6)
    assert result.mean().item() == pytest.approx(truth_T.mean().item(), rel=1e-6)


@every_way
def test_the_labels_are_taken_as_aligned_and_not_shifted_again(score):
    # Each state points at its own token, so that a shift would make the loss large.
    hidden = 100 * WEIGHT / WEIGHT.square().sum(1, keepdim=True)
    labels = torch.arange(V)
    truth = oracle.loss(hidden @ WEIGHT.t(), labels, oracle.nll)
    assert truth < oracle.loss(hidden @ WEIGHT.t(), labels.roll(-1), oracle.nll) / 2
    nats = score(hidden, labels).stats().as_logs()["dft/nll"]
    assert nats == pytest.approx(truth.item(), rel=1e-5)


@every_way
def test_the_ignore_index_is_a_choice(score):
    hidden = hidden_states(2, 4)
    labels = LABELS.masked_fill(LABELS == IGNORED, -1)
    assert score(hidden, labels, ignore_index=-1).loss_sum == score(hidden, LABELS).loss_sum


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@every_way
def test_what_stands_at_an_ignored_position_does_not_matter(score, bad):
    clean, dirty = hidden_states(2, 4), hidden_states(2, 4)
    dirty[LABELS == IGNORED] = bad
    clean.requires_grad_()
    dirty.requires_grad_()
    expected, result = score(clean, LABELS).mean(), score(dirty, LABELS).mean()
    assert result == expected
    expected.backward()
    result.backward()
    assert torch.equal(dirty.grad, clean.grad)
    assert dirty.grad[LABELS == IGNORED].abs().max() == 0


@pytest.mark.parametrize("num_items", [None, 0, 8, torch.tensor(0)])
@every_way
def test_without_any_target_the_loss_is_a_zero_that_backward_accepts(score, num_items):
    hidden = torch.full((2, 4, D), math.nan).requires_grad_()
    result = score(hidden, torch.full((2, 4), IGNORED))
    loss = result.mean(num_items)
    loss.backward()
    assert loss == 0
    assert hidden.grad.tolist() == torch.zeros(2, 4, D).tolist()
    assert result.stats().as_logs() == {}


def test_without_any_target_every_input_of_the_head_gets_zeros():
    made = problems.problem((4, D, V), bias=True)
    head = Head(made.weight_VD, made.bias_V)
    loss = hidden_loss(PLAN, made.hidden_TD, head, torch.full((4,), IGNORED)).mean()
    for gradient, tensor in zip(torch.autograd.grad(loss, made.inputs), made.inputs, strict=True):
        assert gradient.shape == tensor.shape
        assert gradient.abs().max() == 0


@pytest.mark.parametrize("leading", [(0,), (2, 0), (0, 3)])
@every_way
def test_an_empty_batch_is_no_target_at_all(score, leading):
    hidden = hidden_states(*leading).requires_grad_()
    loss = score(hidden, torch.empty(leading, dtype=torch.int64)).mean()
    loss.backward()
    assert loss == 0
    assert hidden.grad.shape == hidden.shape


def test_an_ignored_row_never_reaches_a_gemm():
    def flops(labels):
        hidden = hidden_states(2, 4).requires_grad_()
        with FlopCounterMode(display=False) as counter:
            by_head(hidden, labels).mean().backward()
        return counter.get_total_flops()

    assert flops(LABELS) == 5 * 2 * (2 * D * V)  # 5 tokens, 2 GEMMs of a multiply and an add
    assert flops(LABELS.clamp(min=0)) == 8 * 2 * (2 * D * V)


@every_way
def test_any_split_into_micro_batches_gives_the_same_step(score):
    labels = torch.tensor([3, 7, IGNORED, 0, 10, 5, 4])  # 1, 3 and 2 targets
    whole, split = hidden_states(7).requires_grad_(), hidden_states(7).requires_grad_()
    score(whole, labels).mean().backward()
    for start, stop in [(0, 1), (1, 5), (5, 7)]:
        score(split[start:stop], labels[start:stop]).mean(num_items=6).backward()
    assert oracle.gap(split.grad, whole.grad) < 1e-6


@pytest.mark.parametrize(
    "four",
    [
        4,
        4.0,
        torch.tensor(4),
        torch.tensor([4]),
        torch.tensor([[4]], dtype=torch.int32),
        torch.tensor(4.0, dtype=torch.float64),
        torch.tensor(4.0, dtype=torch.bfloat16),
    ],
    ids=repr,
)
@every_way
def test_num_items_is_a_number_in_whatever_shape_it_comes(score, four):
    result = score(hidden_states(2, 4), LABELS)
    loss = result.mean(four)
    assert loss == result.loss_sum / 4
    assert (loss.shape, loss.dtype) == ((), torch.float32)


@pytest.mark.parametrize("zero", [0, 0.0, torch.tensor(0), torch.tensor([0.0])], ids=repr)
def test_dividing_by_no_token_leaves_the_sum(zero):
    assert normalise(torch.tensor(3.0), zero) == 3


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_a_number_of_tokens_on_a_device_is_not_waited_for(dtype):
    # A tensor on `meta` has no value that could be read.
    mean = normalise(torch.empty((), device="meta"), torch.empty(1, dtype=dtype, device="meta"))
    assert (mean.device.type, mean.shape, mean.dtype) == ("meta", (), torch.float32)


@pytest.mark.parametrize(("number", "shown"), [(-1, "-1"), (-0.5, "-0.5"), (math.nan, "nan"), (math.inf, "inf")])
@pytest.mark.parametrize("form", [float, torch.tensor])
def test_a_number_of_tokens_that_cannot_be_is_refused(form, number, shown):
    with pytest.raises(LabelError) as caught:
        normalise(torch.tensor(3.0), form(number))
    assert str(caught.value) == (f"num_items is {shown}; it counts target tokens, so 0 or more is allowed.")


@pytest.mark.parametrize("shape", [(2,), (1, 2), (0,)])
def test_a_vector_of_token_counts_is_refused_with_where_it_comes_from(shape):
    with pytest.raises(LabelError) as caught:
        normalise(torch.tensor(3.0), torch.ones(shape))
    assert str(caught.value) == (
        f"num_items has shape {shape}; one number is allowed. nn.DataParallel makes it a vector: "
        "start one process per GPU instead (accelerate launch, torchrun)."
    )


@every_way
def test_one_label_per_position_is_needed(score):
    with pytest.raises(LabelError) as caught:
        score(hidden_states(2, 4), LABELS[:, 1:])
    assert str(caught.value) == (
        "labels have shape (2, 3), but (2, 4) positions are to be scored; give one label per position."
    )
    with pytest.raises(LabelError, match=r"labels have shape \(8,\), but \(2, 4\) positions"):
        score(hidden_states(2, 4), LABELS.reshape(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
@every_way
def test_labels_are_integers(score, dtype):
    with pytest.raises(LabelError) as caught:
        score(hidden_states(2, 4), LABELS.clamp(min=0).to(dtype))
    assert str(caught.value) == f"labels have dtype {dtype}; an integer dtype is needed (labels.long())."


@every_way
def test_a_label_beyond_the_logits_is_refused(score):
    with pytest.raises(LabelError, match=f"labels hold {V}, but the model has {V} logits"):
        score(hidden_states(1), torch.tensor([V]))


@every_way
def test_the_statistics_are_those_of_the_scored_tokens(score):
    hidden = hidden_states(2, 4)
    sums = score(hidden, LABELS).stats(eos_token_ids=(7,)).sums_K
    kept = LABELS != IGNORED
    p_T = oracle.log_probabilities(hidden[kept] @ WEIGHT.t(), LABELS[kept]).exp()
    assert sums[Sum.TOKENS] == 5
    assert sums[Sum.PROB].item() == pytest.approx(p_T.sum().item(), rel=1e-6)
    assert sums[Sum.LOSS].item() == pytest.approx(-(p_T * p_T.log()).sum().item(), rel=1e-6)
    assert sums[Sum.EOS_PROB].item() == pytest.approx(p_T[1].item(), rel=1e-6)


@every_way
def test_the_statistics_may_count_some_tokens_only(score):
    hidden = hidden_states(2, 4)
    counted_T = torch.tensor([True, False, True, True, False])
    fewer = LABELS.clone()
    fewer[LABELS != IGNORED] = torch.where(counted_T, LABELS[LABELS != IGNORED], IGNORED)
    sums_K = score(hidden, LABELS).stats(counted_T=counted_T).sums_K
    assert torch.allclose(sums_K, score(hidden, fewer).stats().sums_K)
    assert sums_K[Sum.TOKENS] == 3


def test_a_plan_can_ask_for_statistics_that_its_objective_does_not_need():
    plan = LossPlan(NLL(), chunked, "lean", 1 << 20, needs=frozenset({"entropy"}))
    for result in (
        hidden_loss(plan, hidden_states(2, 4), Head(WEIGHT), LABELS),
        logits_loss(plan, hidden_states(2, 4) @ WEIGHT.t(), LABELS),
    ):
        assert result.scored.rows.entropy_T.shape == (5,)
        assert result.scored.rows.sum_p_squared_T is None
