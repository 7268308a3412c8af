"""`token_loss_from_logp` against formulas written out by hand in float64, and against the same loss of the logits."""

from __future__ import annotations

import math

import pytest
import torch
from support import oracle, problems
from support.family import FORMULAS, NAMES
from support.weighers import Divided, OfBatch, OfSequence

import dft_plugin
from dft_plugin import Clock, Facts, token_loss, token_loss_from_logp
from dft_plugin.errors import ClockError, InputError, LabelError, SettingsError
from dft_plugin.objectives import DEFT, DFT, EAFT, GIFT, IDFT, Objective, Thresholded

T, V = 60, 97
IGNORED = -100


def problem():
    """Targets from near impossible to near certain, some of them ignored, in sequences of ten."""
    generator = torch.Generator().manual_seed(0)
    logits_TV = 2 * torch.randn(T, V, generator=generator, dtype=torch.float64)
    ids_T = torch.randint(0, V, (T,), generator=generator)
    logits_TV[torch.arange(T), ids_T] = torch.linspace(-9, 22, T, dtype=torch.float64)
    labels_T = ids_T.clone()
    labels_T[::7] = IGNORED
    logp_T = oracle.log_probabilities(logits_TV, ids_T)
    columns = {
        "ref_logp": (logp_T + torch.randn(T, generator=generator)).clamp(max=0).float(),
        "old_logp": (logp_T + 0.3 * torch.randn(T, generator=generator)).clamp(max=0).float(),
        "ref_mass": torch.rand(T, generator=generator),
    }
    return logits_TV, labels_T, columns


def facts_of(columns):
    places = {"sequence_BS": torch.arange(T) // 10, "position_BS": torch.arange(T) % 10}
    return Facts(columns=columns, **places)


def statistics_of(logits_TV, objective):
    """What a host may have computed beside log p."""
    p_TV = logits_TV.detach().softmax(-1)
    every = {"entropy": -(p_TV * p_TV.log()).nan_to_num().sum(-1), "sum_p_squared": p_TV.square().sum(-1)}
    return {name: every[name] for name in objective.needs}


SUFFICES = [pair for pair in zip(FORMULAS, NAMES, strict=True) if not isinstance(pair[0][0], EAFT)]


@pytest.mark.parametrize(("objective", "formula"), [pair for pair, _ in SUFFICES], ids=[name for _, name in SUFFICES])
def test_value_and_gradient_are_those_of_the_formula(objective, formula):
    logits_TV, labels_T, columns = problem()
    kept = labels_T != IGNORED
    logits_TV.requires_grad_()
    facts, given = facts_of(columns), statistics_of(logits_TV, objective)
    logp_T = oracle.log_probabilities(logits_TV, labels_T.clamp(min=0))
    # One that does not divide by tokens counts the step by itself.
    num_items = 33.0 if objective.divisor == "tokens" else None
    loss = token_loss_from_logp(logp_T, labels_T, objective=objective, num_items=num_items, facts=facts, **given)
    (gradient_TV,) = torch.autograd.grad(loss, logits_TV)

    sequence_T = (torch.arange(T) // 10)[kept]
    of_kept = {name: column[kept] for name, column in columns.items()}
    losses = formula(logits_TV[kept], labels_T[kept], sequence=sequence_T, **of_kept)
    divisor = num_items if num_items else float((losses.detach() != 0).sum())
    truth = losses.sum() / divisor
    (true_TV,) = torch.autograd.grad(truth, logits_TV)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(truth.item(), rel=1e-9)
    assert torch.allclose(gradient_TV, true_TV, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("objective", ["dft", "nll", {"alpha": 0.5}, {"floor": 0.1}, "chord_phi", "focal", "profit"])
@pytest.mark.parametrize("p", [1e-6, 0.2, 0.5, 1 - 1e-3, 1 - 1e-6])
def test_it_is_the_loss_of_the_logits(objective, p):
    logits, labels = problems.logits_with_probability(p)
    labels[::5] = IGNORED
    logits = logits.double().requires_grad_()
    logp = oracle.log_probabilities(logits, labels.clamp(min=0)).float()
    of_logp = token_loss_from_logp(logp, labels, objective=objective, num_items=77)
    of_logits = token_loss(logits, labels, objective=objective, num_items=77)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (of_logp, of_logits)]
    assert of_logp.item() == pytest.approx(of_logits.item(), rel=2e-6)
    assert torch.allclose(*gradients, rtol=2e-6, atol=0)


def test_log_p_in_half_precision_is_taken_to_float32_before_anything_is_done_with_it():
    logp = torch.tensor([-0.1, -1.0, -3.0, -8.0]).bfloat16().requires_grad_()
    loss = token_loss_from_logp(logp, torch.tensor([1, 2, 3, 4]))
    loss.backward()
    exact = logp.detach().double()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((-exact.exp() * exact).mean().item(), rel=1e-6)
    assert logp.grad.tolist() == (-exact.exp() / 4).bfloat16().tolist()


def test_an_objective_may_look_at_entropy_and_sum_of_squares_that_are_given():
    logits_TV, labels_T, _ = problem()
    for objective in (IDFT(), DEFT()):
        logp_T = oracle.log_probabilities(logits_TV, labels_T.clamp(min=0))
        given = statistics_of(logits_TV, objective)
        loss = token_loss_from_logp(logp_T, labels_T, objective=objective, **given)
        assert loss.item() == pytest.approx(token_loss(logits_TV, labels_T, objective=objective).item(), rel=1e-9)


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ("eaft", "`objective: eaft` reads `top20` of each row of logits, which log p does not tell."),
        ("idft", "`objective: idft` reads `entropy` of each row of logits"),
        ("deft", "`objective: deft` reads `sum_p_squared` of each row of logits"),
        (GIFT(), "`objective: gift` compares whole rows of logits with those of a reference"),
        ({"first": {"name": "eaft", "for": 2}}, "`objective: eaft` reads `top20`"),
        ("psft", "`objective` reads `old_logp`, which this function was not given"),
        ({"always_learn": "eos"}, "names tokens by a word ('eos'), and this function has no tokenizer"),
        ({"kernel": "chunked"}, "sets `kernel`, which has no effect in this function"),
        ({"scratch_mb": 10}, "sets `scratch_mb`, which has no effect in this function"),
        ({"log": ["top1"]}, "sets `log`, which has no effect in this function"),
    ],
)
def test_what_log_p_does_not_tell_is_refused_by_name(objective, says):
    with pytest.raises(SettingsError) as raised:
        token_loss_from_logp(torch.zeros(2), torch.tensor([1, 2]), objective=objective)
    assert says in str(raised.value)


def test_a_row_statistic_that_needs_no_declaration_is_refused_when_it_is_read():
    class OfTheLikeliest(Objective):
        """Declares nothing: every kernel has it."""

        name = "of_the_likeliest"

        def weight(self, rows):
            return rows.is_top1_T.to(rows.logp_T.dtype)

    with pytest.raises(SettingsError, match=r"of_the_likeliest reads `is_top1_T`, .* which log p alone does not tell"):
        token_loss_from_logp(torch.zeros(2), torch.tensor([1, 2]), objective=OfTheLikeliest())


def test_a_clock_says_what_holds():
    logp, targets = torch.tensor([-1.0, -2.0]), torch.tensor([1, 2])
    ramp = {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 4}}
    expected = token_loss_from_logp(logp, targets, objective=DFT(alpha=0.5)).item()
    clock = Clock(2, 10, 0.0)
    assert token_loss_from_logp(logp, targets, objective=ramp, clock=clock).item() == pytest.approx(expected)
    facts = Facts(clock=clock)
    assert token_loss_from_logp(logp, targets, objective=ramp, facts=facts).item() == pytest.approx(expected)
    with pytest.raises(ClockError, match="nobody says how far it is"):
        token_loss_from_logp(logp, targets, objective=ramp)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (Divided(), "divides by the sum of its weights"),
        (Thresholded(), "divides by the number of the tokens that it keeps"),
        (OfBatch(), "weighs a token by all others of an optimizer step"),
    ],
)
def test_the_tokens_of_a_step_are_refused_where_they_are_not_what_divides(objective, words):
    logp, targets = torch.tensor([-1.0, -2.0]), torch.tensor([1, 2])
    assert math.isfinite(token_loss_from_logp(logp, targets, objective=objective))
    with pytest.raises(LabelError, match=words):
        token_loss_from_logp(logp, targets, objective=objective, num_items=7)


def test_an_objective_of_sequences_is_told_where_they_are():
    logits_TV, labels_T, columns = problem()
    logp_T, facts = oracle.log_probabilities(logits_TV, labels_T.clamp(min=0)), facts_of(columns)
    loss = token_loss_from_logp(logp_T, labels_T, objective=OfSequence(), facts=facts)
    expected = token_loss(logits_TV, labels_T, objective=OfSequence(), facts=facts)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)


def test_ids_are_always_learned_and_weighed():
    logits_TV, labels_T, _ = problem()
    number = int(labels_T[1])
    objective = {"always_learn": [number], "weights": {"tokens": {int(labels_T[2]): 3.0}}}
    logp_T = oracle.log_probabilities(logits_TV, labels_T.clamp(min=0))
    loss = token_loss_from_logp(logp_T, labels_T, objective=objective)
    assert loss.item() == pytest.approx(token_loss(logits_TV, labels_T, objective=objective).item(), rel=1e-9)


def test_any_split_of_a_step_is_the_same_step():
    logits_TV, labels_T, _ = problem()
    logp_T = oracle.log_probabilities(logits_TV, labels_T.clamp(min=0))
    count = int((labels_T != IGNORED).sum())
    parts = [token_loss_from_logp(logp_T[part], labels_T[part], num_items=count) for part in (slice(23), slice(23, T))]
    assert sum(parts).item() == pytest.approx(token_loss_from_logp(logp_T, labels_T).item(), rel=1e-12)


def test_where_nothing_is_scored_the_loss_is_a_zero_with_a_graph():
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = token_loss_from_logp(logp, torch.tensor([IGNORED, IGNORED]))
    loss.backward()
    assert loss.item() == 0
    assert logp.grad.tolist() == [0, 0]


def test_a_target_that_is_impossible_adds_nothing_and_an_ignored_position_may_hold_anything():
    logp = torch.tensor([-math.inf, -1.0, math.nan], requires_grad=True)
    loss = token_loss_from_logp(logp, torch.tensor([1, 2, IGNORED]))
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(-1) / 2)
    assert logp.grad.tolist() == pytest.approx([0, -math.exp(-1) / 2, 0])


def test_a_log_p_that_was_rounded_above_0_is_that_of_a_certain_token():
    logp = torch.tensor([1e-5], requires_grad=True)
    loss = token_loss_from_logp(logp, torch.tensor([1]), objective={"name": "focal", "gamma": 0.5})
    loss.backward()
    assert (loss.item(), logp.grad.item()) == (0, 0)


@pytest.mark.parametrize(
    ("logp", "targets", "more", "says"),
    [
        ([1.0], [1], {}, r"logp holds 1; the logarithm of a probability is 0 or less\. Of a loss of each token"),
        ([-1.0, -2.0], [1], {}, r"labels have shape \(1,\), and logp \(2,\)"),
        ([-1.0], [1], {"entropy": torch.zeros(2)}, r"labels have shape \(1,\), and entropy \(2,\)"),
        ([-1.0], [-1], {}, "labels hold -1; token ids are allowed, and -100"),
        ([-1.0], [1], {"num_items": -1}, "num_items is -1"),
    ],
)
def test_what_does_not_fit_is_refused(logp, targets, more, says):
    with pytest.raises(LabelError, match=says):
        token_loss_from_logp(torch.tensor(logp), torch.tensor(targets), **more)


def test_tensors_on_meta_are_refused_by_name():
    with pytest.raises(InputError, match=r"^`logp`: on `meta`"):
        token_loss_from_logp(torch.zeros(2, device="meta"), torch.tensor([1, 2]))


def test_it_is_public():
    assert "token_loss_from_logp" in dft_plugin.__all__
    assert dft_plugin.token_loss_from_logp is token_loss_from_logp
