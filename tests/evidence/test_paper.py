"""What the paper says of DFT (arXiv 2508.05629), on a model so small that it is trained here."""

from __future__ import annotations

import copy
from dataclasses import replace
from random import Random

import pytest
import torch
from peft import LoraConfig, get_peft_model

from dft_plugin import attach
from dft_plugin.core.bands import EDGES
from evidence import measures, tasks
from evidence.model import IGNORED, Size, batch, build
from evidence.sentence import Sentence
from evidence.tasks import Example
from evidence.training import Schedule, fit

KNOWN = tasks.world()[:12]
SCHEDULE = Schedule(steps=80, rows=24, rate=2e-3)


def batches(examples, seed, rows=24):
    rng = Random(seed)
    while True:
        yield batch([rng.choice(examples) for _ in range(rows)])


def never():
    """Nothing is waited for."""


def shown(share, seed):
    """Return facts of which a share is wrong."""
    rng = Random(seed)
    drawn = [rng.choice(KNOWN) for _ in range(600)]
    return [Example(one.prompt, tasks.value(rng), one.truth) if rng.random() < share else one for one in drawn]


@pytest.fixture(scope="module")
def base():
    """A model that has read twelve facts in a text of which a third is wrong."""
    model = build(Size(hidden=48, layers=1), seed=0)
    fit(model, batches(shown(0.33, 0), 0), replace(SCHEDULE, steps=250, rate=6e-3), "nll", never)
    return model


@pytest.fixture(scope="module")
def noisy():
    """Demonstrations of these facts, 40 % of them wrong."""
    return shown(0.4, 1)


def trained(base, examples, loss, schedule=SCHEDULE):
    model = copy.deepcopy(base)
    return model, fit(model, batches(examples, 2), schedule, loss, never)


def gradient(model, loss_of):
    model.zero_grad()
    loss_of(model).backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()]).double()


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_the_gradient_is_that_of_minus_p_and_of_generalised_cross_entropy(base, noisy, alpha):
    """Section 3, and arXiv 1805.07836 with q = alpha: (1 - p^q) / q."""
    model, inputs = copy.deepcopy(base).double(), batch(noisy[:16])

    def by_hand(model):
        logp_BTV = model(input_ids=inputs["input_ids"]).logits[:, :-1].log_softmax(-1)
        target_BT = inputs["labels"][:, 1:]
        kept_BT = target_BT != IGNORED
        p_T = logp_BTV[kept_BT].gather(1, target_BT[kept_BT][:, None]).exp()
        return ((1 - p_T**alpha) / alpha).mean()

    expected = gradient(model, by_hand)
    attachment = attach(model, {"name": "dft", "alpha": alpha})
    found = gradient(model, lambda model: model(**inputs).loss)
    attachment.detach()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert expected.norm() > 1e-3


def test_a_weight_for_a_whole_answer_vanishes_with_its_length_and_weights_of_tokens_do_not(base):
    """Table 5: 15.75 by the probability of the answer, 31.58 by those of its tokens."""

    def size(loss, length):
        model = copy.deepcopy(base)
        attachment = attach(model, loss)
        inputs = batch([Example("Faaaa=", "A" * length, "")])
        found = gradient(model, lambda model: model(**inputs).loss).norm()
        attachment.detach()
        return float(found)

    assert size(Sentence(), 40) < 1e-6 * size(Sentence(), 2)
    assert size("dft", 40) > 1e-2 * size("dft", 2)
    assert size(Sentence(mean="geometric"), 40) > 1e-2 * size(Sentence(mean="geometric"), 2)


def test_a_weight_for_a_whole_answer_is_the_product_of_those_of_its_tokens(base):
    model, inputs = copy.deepcopy(base), batch([KNOWN[0], KNOWN[1]])
    with torch.no_grad():
        logp_BTV = model(input_ids=inputs["input_ids"]).logits[:, :-1].log_softmax(-1)
        target_BT = inputs["labels"][:, 1:]
        kept_BT = target_BT != IGNORED
        logp_BT = logp_BTV.gather(-1, target_BT.clamp(min=0)[..., None])[..., 0] * kept_BT
        expected = -(logp_BT.sum(1, keepdim=True).exp() * logp_BT).sum() / kept_BT.sum()
        attachment = attach(model, Sentence())
        assert float(model(**inputs).loss) == pytest.approx(float(expected), rel=1e-4)
        attachment.detach()


def test_the_nll_rises_while_the_loss_of_dft_falls(base, noisy):
    """Issues 2 and 28 of the authors' repository: no fault, it gives up on what it finds unlikely."""
    _, logs = trained(base, noisy, "dft")
    assert logs[-1]["dft/nll"] > 1.2 * logs[0]["dft/nll"]
    assert logs[-1]["dft/loss"] < 0.8 * logs[0]["dft/loss"]
    _, logs = trained(base, noisy, "nll")
    assert logs[-1]["dft/nll"] < logs[0]["dft/nll"]


def test_dft_leaves_probabilities_at_both_ends_and_sft_between(base, noisy):
    """Figure 2: SFT raises all tokens, DFT raises some and lowers others."""

    def ends(loss):
        counts = measures.likelihood(trained(base, noisy, loss)[0], noisy)["bands"]
        low, high = EDGES.index(0.01), EDGES.index(0.95)
        return sum(counts[:low]) / sum(counts), sum(counts[low:high]) / sum(counts), sum(counts[high:]) / sum(counts)

    (dft_low, dft_middle, dft_high), (sft_low, sft_middle, sft_high) = ends("dft"), ends("nll")
    assert dft_low > 3 * sft_low
    assert dft_high > 1.5 * sft_high
    assert sft_middle > 3 * dft_middle


def test_lora_does_as_well_as_full_training(base, noisy):
    """Appendix: where the model has a prior, DFT gains the same through adapters."""
    tests = {"taught": list(KNOWN)}
    before = measures.accuracies(base, tests, 1)["taught@1"]
    full = measures.accuracies(trained(base, noisy, "dft")[0], tests, 1)["taught@1"]
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(copy.deepcopy(base), config)
    fit(adapted, batches(noisy, 2), replace(SCHEDULE, rate=1e-2), "dft", never)
    lora = measures.accuracies(adapted.merge_and_unload().eval(), tests, 1)["taught@1"]
    assert full >= before + 0.2
    assert lora >= full - 0.1
