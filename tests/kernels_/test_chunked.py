"""The lean kernel: chunks, who gets a gradient and when it is made, autocast."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from support import oracle, problems
from support.counting import CountGemms

from dft_plugin.kernels import Head, LowRank, Transform, chunked
from dft_plugin.objectives import DFT, Targets

T, D, V, R = 12, 5, 11, 2


def small(**changes) -> problems.Problem:
    return problems.problem((T, D, V), **changes)


def score(made: problems.Problem, objective=None, **options):
    low_rank = LowRank(*made.low_rank) if made.low_rank else None
    head = Head(made.weight_VD, made.bias_V, Transform(made.scale, made.softcap), low_rank)
    return chunked(made.hidden_TD, head, Targets(made.targets_T), objective or DFT(), **options)


def freeze(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        tensor.requires_grad_(False)


class Watching(DFT):
    """DFT that notes how many rows it is asked about at a time."""

    rows: ClassVar[list[int]] = []

    def model_post_init(self, context: Any) -> None:
        self.rows.clear()

    def weight(self, rows):
        self.rows.append(rows.logp_T.numel())
        return super().weight(rows)


@pytest.mark.parametrize(
    ("scratch_bytes", "chunks"),
    [
        (0, [63] * 23 + [51]),
        (100 * V * 4, [100] * 15),
        (1 << 30, [750, 750]),
    ],
)
def test_the_size_of_a_chunk_changes_nothing(scratch_bytes, chunks):
    made = problems.problem((1500, D, V), bias=True, rank=R, scale=0.5, softcap=5.0)
    result = score(made, Watching(), scratch_bytes=scratch_bytes)
    assert Watching.rows == chunks
    loss = result.loss_sum / 1500
    truth, *true_gradients = made.truth()
    assert loss.item() == pytest.approx(truth.item(), rel=1e-6)
    assert oracle.gap(torch.autograd.grad(loss, made.inputs), true_gradients) < 2e-6
    logp_T = oracle.log_probabilities(made.logits().detach(), made.targets_T)
    assert oracle.gap(result.rows.logp_T, logp_T) < 1e-6


def test_a_chunk_of_half_precision_logits_has_twice_the_rows():
    for dtype, rows in ((torch.float32, 100), (torch.bfloat16, 200)):
        score(problems.problem((1000, D, V), dtype=dtype), Watching(), scratch_bytes=100 * V * 4)
        assert Watching.rows[0] == rows


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias", "lora_a", "lora_b"])
def test_a_frozen_input_gets_no_gradient_and_the_others_theirs(frozen):
    made = small(bias=True, rank=R, scale=0.5, softcap=5.0)
    truth = dict(zip(["hidden", "weight", "bias", "lora_a", "lora_b"], made.truth()[1:], strict=True))
    inputs = dict(zip(truth, made.inputs, strict=True))
    freeze(inputs[frozen])
    (score(made).loss_sum / T).backward()
    for name, tensor in inputs.items():
        if name == frozen:
            assert tensor.grad is None
        else:
            assert oracle.gap(tensor.grad, truth[name]) < 1e-5


def test_lora_alone_can_be_trained():
    made = small(rank=R)
    truth = made.truth()
    freeze(made.hidden_TD, made.weight_VD)
    (score(made).loss_sum / T).backward()
    assert oracle.gap([tensor.grad for tensor in made.low_rank], truth[3:]) < 1e-5


def test_with_everything_frozen_there_is_no_graph():
    made = small()
    freeze(*made.inputs)
    assert not score(made).loss_sum.requires_grad


def gemms_of(made: problems.Problem) -> tuple[int, int]:
    """Those of the forward pass, and those of backward."""
    with CountGemms() as counter:
        loss_sum = score(made).loss_sum
        forward = counter.count
        if loss_sum.requires_grad:
            loss_sum.backward()
        return forward, counter.count - forward


def test_a_trained_head_takes_three_gemms_all_in_the_forward_pass():
    assert gemms_of(small()) == (3, 0)


def test_a_frozen_head_takes_two():
    made = small()
    freeze(made.weight_VD)
    assert gemms_of(made) == (2, 0)


def test_no_grad_mode_computes_no_gradient():
    with torch.no_grad():
        assert gemms_of(small()) == (1, 0)


def test_an_upstream_factor_reaches_every_gradient():
    made = small(bias=True, rank=R)
    gradients = torch.autograd.grad(-3 * score(made).loss_sum / T, made.inputs)
    assert oracle.gap(gradients, [-3 * truth for truth in made.truth()[1:]]) < 1e-5


def test_a_second_backward_over_a_retained_graph_gives_the_same_gradients():
    made = small(bias=True, rank=R)
    loss = score(made).loss_sum / T
    first = torch.autograd.grad(loss, made.inputs, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(2 * loss, made.inputs, retain_graph=True)
    third = torch.autograd.grad(loss, made.inputs)
    assert oracle.gap(second, [2 * gradient for gradient in kept]) < 1e-6
    assert oracle.gap(third, kept) < 1e-6
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_a_second_backward_repeats_the_forward_under_its_own_autocast():
    made = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_sum = score(made).loss_sum
    first = torch.autograd.grad(loss_sum, made.inputs, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    assert all(map(torch.equal, torch.autograd.grad(loss_sum, made.inputs), kept))


def test_autocast_runs_the_gemms_in_its_dtype_and_the_softmax_in_float32():
    made = small(bias=True, rank=R)
    half = small(bias=True, rank=R, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = score(made)
    assert torch.equal(result.rows.logp_T, score(half).rows.logp_T)
    gradients = torch.autograd.grad(result.loss_sum / T, made.inputs)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    assert result.loss_sum.dtype == torch.float32
    assert oracle.gap(gradients, half.truth()[1:]) < 3e-2


def test_gradients_have_the_dtypes_of_their_inputs():
    made = small(bias=True, rank=R, dtype=torch.bfloat16)
    score(made).loss_sum.backward()
    assert {tensor.grad.dtype for tensor in made.inputs} == {torch.bfloat16}


def test_the_gradient_of_a_half_precision_weight_is_summed_in_float32():
    # With a weight of zeros p is 1/2. The first chunk gives 64 * 128 / 2 = 4096, each of the other
    # 23 gives 64 / 8 / 2 = 4, which bfloat16 would lose: its numbers are 32 apart there.
    hidden = torch.full((24 * 64, 1), 1 / 8, dtype=torch.bfloat16)
    hidden[:64] = 128
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(24 * 64, dtype=torch.int64)
    chunked(hidden, Head(weight), Targets(targets), DFT(alpha=0), scratch_bytes=0).loss_sum.backward()
    assert weight.grad[:, 0].tolist() == [-4192, 4192]  # 4096 + 23 * 4 = 4188, rounded once


def test_the_inputs_stay_as_they_are():
    made = small(bias=True, rank=R, softcap=5.0)
    before = [tensor.detach().clone() for tensor in made.inputs]
    score(made).loss_sum.backward()
    assert all(map(torch.equal, (tensor.detach() for tensor in made.inputs), before))


def test_it_composes_with_a_checkpoint_around_what_comes_before_it():
    made = small()
    layer = torch.nn.Linear(D, D)
    plain = problems.Problem(layer(made.hidden_TD), made.targets_T, made.weight_VD, None, None, 1.0, None)
    expected = torch.autograd.grad(score(plain).loss_sum, [*layer.parameters(), made.weight_VD])

    def forward(hidden_TD):
        return chunked(layer(hidden_TD), Head(made.weight_VD), Targets(made.targets_T), DFT()).loss_sum

    loss_sum = torch.utils.checkpoint.checkpoint(forward, made.hidden_TD, use_reentrant=False)
    gradients = torch.autograd.grad(loss_sum, [*layer.parameters(), made.weight_VD])
    assert oracle.gap(gradients, expected) < 1e-6
