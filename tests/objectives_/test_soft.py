"""Soft targets in every kernel: loss and gradients against their formulas in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from support import oracle
from support.family_soft import SOFT_FORMULAS, SOFT_NAMES, asft, gift

from dft_plugin.errors import PluginError
from dft_plugin.kernels import (
    Head,
    LowRank,
    OpaqueHead,
    ShardedHead,
    Transform,
    VocabShard,
    blocked,
    chunked,
    opaque,
    reference,
    score_logits,
    score_logits_,
    vocab_parallel,
)
from dft_plugin.kernels.terms import ByHead, OfLogits
from dft_plugin.objectives import ASFT, GIFT, IWSFT, NLL, Mass, Targets
from dft_plugin.objectives.adjusted import Adjusted

T, D, V, R = 150, 24, 301, 4
TRANSFORM = Transform(0.8, 12.0)
CHUNKS_OF_64 = {"needs": frozenset(), "scratch_bytes": 1}


def problem(dtype=torch.float32):
    """Model and reference agree on some tokens to the last digit, and on others not at all."""
    generator = torch.Generator().manual_seed(0)
    weight_VD = torch.randn(V, D, generator=generator, dtype=torch.float64)
    ids_T = torch.randint(0, V, (T,), generator=generator)
    hidden_TD = weight_VD[ids_T] * torch.linspace(-0.3, 0.6, T, dtype=torch.float64)[:, None]
    apart_T1 = torch.linspace(-0.1, 0.5, T)[:, None].clamp(min=0)
    ref_TD = hidden_TD + apart_T1 * torch.randn(T, D, generator=generator)
    weight = weight_VD.to(dtype).requires_grad_()
    by_head = ByHead(ref_TD.to(dtype), lambda hidden: hidden @ weight.detach().T, TRANSFORM, None)
    return hidden_TD.to(dtype).requires_grad_(), weight, Targets(ids_T, reference=by_head)


def of_logits(kernel, dtype=None):
    def score(hidden, weight, targets, objective):
        logits = TRANSFORM(hidden @ weight.T)
        ref = TRANSFORM(targets.reference.hidden_TD @ weight.detach().T)
        # As on the logits path: those of more positions than are scored.
        ref_NV = torch.cat([torch.full_like(ref[:1], torch.nan), ref])
        targets = replace(targets, reference=OfLogits(ref_NV, Transform(), torch.arange(1, T + 1)[: len(targets)]))
        return kernel(logits, torch.arange(len(targets)), targets, objective, needs=frozenset())

    return score


def called(*, trained):
    def score(hidden, weight, *asked):
        own = weight if trained else weight.detach()
        head = OpaqueHead(lambda chunk: chunk @ own.T, V, TRANSFORM, (own,))
        return opaque(hidden, head, *asked, **CHUNKS_OF_64)

    return score


def read(kernel, *, trained):
    def score(hidden, weight, *asked):
        head = Head(weight if trained else weight.detach(), transform=TRANSFORM)
        return kernel(hidden, head, *asked, **CHUNKS_OF_64)

    return score


WAYS = {
    "reference": read(reference, trained=True),
    "chunked": read(chunked, trained=True),
    "chunked, frozen": read(chunked, trained=False),
    "blocked": read(blocked, trained=False),
    "opaque": called(trained=True),
    "opaque, frozen": called(trained=False),
    "logits": of_logits(score_logits),
    "logits, in place": of_logits(score_logits_),
}


def exact(formula, hidden, weight, targets, **given):
    """The formula in float64, of the numbers that the kernel got."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    ref = TRANSFORM(targets.reference.hidden_TD.double() @ leaves[1].detach().T)
    loss_T = formula(TRANSFORM(leaves[0] @ leaves[1].T), targets.ids_T, ref_logits=ref, **given)
    loss_T.sum().backward()
    return loss_T.detach(), leaves[0].grad, leaves[1].grad


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("objective", "formula"), SOFT_FORMULAS, ids=SOFT_NAMES)
def test_an_objective_is_its_formula(objective, formula, way):
    hidden, weight, targets = problem()
    result = WAYS[way](hidden, weight, targets, objective)
    (3 * result.loss_sum).backward()
    loss_T, grad_TD, grad_VD = exact(formula, hidden, weight, targets)
    assert result.loss_sum.item() == pytest.approx(loss_T.sum().item(), rel=1e-5)
    assert oracle.gap(result.loss_T, loss_T) < 1e-5
    assert oracle.gap(hidden.grad, 3 * grad_TD) < 1e-5
    if weight.grad is not None:
        assert oracle.gap(weight.grad, 3 * grad_VD) < 1e-5


@pytest.mark.parametrize("way", ["chunked, frozen", "opaque, frozen"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("objective", "formula"), SOFT_FORMULAS, ids=SOFT_NAMES)
def test_half_precision_loses_no_more_than_the_textbook_does(objective, formula, dtype, way):
    hidden, weight, targets = problem(dtype)
    WAYS[way](hidden, weight, targets, objective).loss_sum.backward()
    _, truth_TD, _ = exact(formula, hidden, weight, targets)
    naive, _, _ = problem(dtype)
    WAYS["reference"](naive, weight.detach(), targets, objective).loss_sum.backward()
    for first, last in ((0, 25), (25, T)):
        # The first of them are those on which both agree, and of which the difference is small.
        ours, theirs = (oracle.gap(grad[first:last], truth_TD[first:last]) for grad in (hidden.grad, naive.grad))
        assert ours <= 1.5 * theirs + 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("objective", "formula"), SOFT_FORMULAS, ids=SOFT_NAMES)
def test_the_gradient_of_half_logits_is_rounded_once(objective, formula, dtype):
    hidden, weight, targets = problem(dtype)
    # Logits that agree with the reference's for some tokens.
    raw = (hidden @ weight.T).detach().requires_grad_()
    ref = targets.reference.hidden_TD @ weight.detach().T
    targets = replace(targets, reference=OfLogits(ref, Transform()))
    # A loss scale, as float16 is trained with.
    (2**10 * score_logits(raw, torch.arange(T), targets, objective).loss_sum).backward()
    truth = raw.detach().double().requires_grad_()
    (2**10 * formula(truth, targets.ids_T, ref_logits=ref).sum()).backward()
    rounding = 2 * torch.finfo(dtype).eps
    for rows in (slice(0, 25), slice(25, T)):
        assert oracle.gap(raw.grad[rows], truth.grad[rows]) < rounding


@pytest.mark.parametrize(("objective", "formula"), SOFT_FORMULAS[2:], ids=SOFT_NAMES[2:])
def test_where_both_are_certain_the_target_keeps_its_digits(objective, formula):
    logits = torch.zeros(2, 50)
    logits[:, 7] = torch.tensor([21.0, 24.0])
    logits.requires_grad_()
    ref = torch.zeros(2, 50)
    ref[:, 7] = torch.tensor([24.0, 21.0])
    targets = Targets(torch.tensor([7, 7]), reference=OfLogits(ref, Transform()))
    score_logits(logits, torch.arange(2), targets, objective).loss_sum.backward()
    truth = logits.detach().double().requires_grad_()
    formula(truth, targets.ids_T, ref_logits=ref).sum().backward()
    assert torch.allclose(logits.grad[:, 7].double(), truth.grad[:, 7], rtol=1e-4, atol=0)


def test_small_gradients_come_through_a_product_in_float16():
    hidden, weight, targets = problem(torch.float16)
    # So light that most entries of the gradient on the logits are below what float16 holds.
    light = Adjusted(GIFT(beta=0), column="ratio")
    targets = replace(targets, columns={"ratio": torch.full((T,), 1e-5)})
    scale = 2.0**16
    (scale * WAYS["chunked, frozen"](hidden, weight, targets, light).loss_sum).backward()
    _, truth_TD, _ = exact(lambda *a, **k: 1e-5 * gift(*a, beta=0, **k), hidden, weight, targets)
    # The logits themselves are rounded to a thousandth.
    assert oracle.gap(hidden.grad / scale, truth_TD) < 3e-2


def test_improbable_targets_do_not_overflow_float16_behind_a_head_that_is_called():
    hidden, weight, targets = problem(torch.float16)
    with torch.no_grad():
        worst_T = (hidden @ weight.T).argmin(1)
    # The last of them, of which no target is anything but improbable.
    targets = replace(targets, ids_T=worst_T)[100:]
    hidden = hidden.detach()[100:].requires_grad_()
    (2.0**6 * WAYS["opaque"](hidden, weight, targets, ASFT()).loss_sum).backward()
    _, truth_TD, truth_VD = exact(asft, hidden, weight, targets)
    assert oracle.gap(hidden.grad / 2.0**6, truth_TD) < 1e-2
    assert oracle.gap(weight.grad / 2.0**6, truth_VD) < 1e-2


def test_where_model_and_reference_agree_only_dft_is_left():
    hidden, weight, targets = problem(torch.bfloat16)
    targets = replace(targets, reference=replace(targets.reference, hidden_TD=hidden.detach()))
    WAYS["chunked, frozen"](hidden, weight, targets, ASFT(strength=100)).loss_sum.backward()
    _, truth_TD, _ = exact(lambda *a, **k: asft(*a, strength=0, **k), hidden, weight, targets)
    assert oracle.gap(hidden.grad, truth_TD) < 2e-2


def test_a_lora_branch_gets_its_gradient_and_the_reference_has_none():
    hidden, weight, targets = problem()
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(R, D, generator=generator), torch.randn(V, R, generator=generator)
    leaves = [down.requires_grad_(), up.requires_grad_()]
    head = Head(weight.detach(), None, TRANSFORM, LowRank(hidden @ down.T, up))
    chunked(hidden, head, targets, ASFT(strength=1), **CHUNKS_OF_64).loss_sum.backward()
    mine = [hidden, *leaves]
    truth = [leaf.detach().double().requires_grad_() for leaf in mine]
    base = weight.detach().double()
    logits = TRANSFORM(truth[0] @ base.T + truth[0] @ truth[1].T @ truth[2].T)
    ref = TRANSFORM(targets.reference.hidden_TD.double() @ base.T)
    asft(logits, targets.ids_T, ref_logits=ref, strength=1).sum().backward()
    for ours, theirs in zip(mine, truth, strict=True):
        assert oracle.gap(ours.grad, theirs.grad) < 1e-5


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("logits")])
def test_no_tokens_are_a_zero(way):
    hidden, weight, targets = problem()
    result = WAYS[way](hidden[:0], weight, targets[:0], ASFT())
    assert result.loss_sum.item() == 0
    result.loss_sum.backward()


def test_an_impossible_token_is_no_nan():
    hidden, weight, targets = problem()
    bias = torch.zeros(V)
    bias[5] = -torch.inf
    targets = replace(targets, ids_T=targets.ids_T.where(targets.ids_T != 5, 6))
    ref = replace(targets.reference, project=lambda hidden: hidden @ weight.detach().T + bias, transform=Transform())
    head = Head(weight.detach(), bias)
    result = chunked(hidden, head, replace(targets, reference=ref), ASFT(), **CHUNKS_OF_64)
    result.loss_sum.backward()
    assert result.loss_T.isfinite().all()
    assert hidden.grad.isfinite().all()


def test_an_exempt_token_learns_as_in_sft_and_a_factor_multiplies_all():
    hidden, weight, targets = problem()
    # Tokens of which model and reference say different things.
    always, rare = int(targets.ids_T[103]), int(targets.ids_T[107])
    changed = Adjusted(ASFT(), always=(always,), factors={rare: 3.0})
    result = WAYS["chunked"](hidden, weight, targets, changed)
    result.loss_sum.backward()

    def formula(logits, ids, **given):
        plain = -oracle.log_probabilities(logits, ids)
        return (1.0 + 2.0 * (ids == rare)) * torch.where(ids == always, plain, asft(logits, ids, **given))

    loss_T, grad_TD, _ = exact(formula, hidden, weight, targets)
    assert oracle.gap(result.loss_T, loss_T) < 1e-5
    assert oracle.gap(hidden.grad, grad_TD) < 1e-5


def test_the_mean_divergence_is_a_statistic():
    hidden, weight, targets = problem()
    found = WAYS["blocked"](hidden, weight, targets, ASFT()).statistics["kl"]
    strong, weak = (exact(lambda *a, s=s, **k: asft(*a, strength=s, **k), hidden, weight, targets)[0] for s in (1, 0))
    assert oracle.gap(found, strong - weak) < 1e-5


def test_a_split_vocabulary_and_a_missing_reference_are_refused_by_name():
    hidden, weight, targets = problem()
    with pytest.raises(PluginError, match="the objective asft reads a reference's whole distribution"):
        vocab_parallel(hidden, ShardedHead(weight, VocabShard.even(V), None, TRANSFORM), targets, ASFT())
    with pytest.raises(PluginError, match="the objective asft compares the model with a frozen reference"):
        WAYS["chunked"](hidden, weight, Targets(targets.ids_T), ASFT())


@pytest.mark.parametrize("way", WAYS)
def test_a_column_that_nobody_has_given_is_named(way):
    hidden, weight, targets = problem()
    with pytest.raises(PluginError, match="the objective iw_sft reads the column ref_logp of the tokens, and nobody"):
        WAYS[way](hidden, weight, targets, IWSFT(per="token"))


class OfSequences(IWSFT):
    """Reads both."""

    reference = "distribution"


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_look_at_other_tokens_are_refused_with_a_distribution(way):
    with pytest.raises(PluginError, match="its scope is sequence; with such a reference only the scope `token`"):
        WAYS[way](*problem(), OfSequences())


def test_the_mass_of_a_target_is_that_of_what_is_less_likely_and_its_own():
    logits = torch.tensor([[3.0, 1.0, 2.0, 1.0]])
    p = logits.double().softmax(1)[0]
    found = torch.stack([Mass()(logits, torch.tensor([target]))[0] for target in range(4)])
    assert torch.allclose(found.double(), torch.stack([p.sum(), p[1], p[1] + p[2] + p[3], p[3]]))


def test_a_kernel_without_a_reference_is_left_alone():
    hidden, weight, targets = problem()
    plain = WAYS["chunked"](hidden, weight, Targets(targets.ids_T), NLL())
    assert plain.soft_T is None
