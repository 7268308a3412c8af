"""What is measured of a model, whatever became of it."""

from __future__ import annotations

from random import Random

import pytest
import torch

from evidence import measures, tasks
from evidence.alphabet import END, VOCAB
from evidence.model import Size, batch, build
from evidence.sampling import answers
from evidence.tasks import Example
from evidence.training import Schedule, fit

RNG = Random(0)
SUMS = [tasks.add(RNG, 0) for _ in range(6)]


@pytest.fixture(scope="module")
def model():
    return build(Size(hidden=24, layers=2), seed=0).eval()


def test_a_model_that_diverged_is_measured_like_any_other():
    broken = build(Size(hidden=24, layers=1), seed=0).eval()
    for weight in broken.parameters():
        weight.data.fill_(float("nan"))
    found = measures.likelihood(broken, SUMS)
    assert found["mean_prob"] == pytest.approx(1 / VOCAB, rel=1e-3)
    assert measures.accuracies(broken, {"taught": SUMS}, 1)["taught@1"] == 0.0


def test_a_greedy_answer_is_what_the_model_finds_likeliest_token_by_token():
    """Its answers begin alike and end at different places, and the cache is cut to those that go on."""
    taught = [Example("RAB=", "BA", "BA"), Example("S312=", "BABC", "BABC"), Example("Fabcd=", "BAABAB", "BAABAB")]
    model = build(Size(hidden=48, layers=2), seed=0)

    def rows():
        while True:
            yield batch(taught)

    fit(model, rows(), Schedule(steps=100, rows=3, rate=1e-2), "nll", lambda: None)
    prompts = [one.prompt for one in taught] * 2
    assert answers(model, prompts, [0.0] * 6, seed=1) == [one.answer for one in taught] * 2
    assert measures.accuracies(model, {"taught": taught}, 1)["form@0"] == 1.0
    inputs = batch(taught)
    with torch.no_grad():
        chosen = model(input_ids=inputs["input_ids"]).logits.argmax(-1)[:, :-1]
    kept = inputs["labels"][:, 1:] >= 0
    assert torch.equal(chosen[kept], inputs["labels"][:, 1:][kept])
    assert (chosen[kept] == END).sum() == 3


def test_the_bands_hold_every_token_and_the_distance_is_relative(model):
    found = measures.likelihood(model, SUMS)
    assert sum(found["bands"]) == sum(len(one.answer) + 1 for one in SUMS)
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    moved = build(Size(hidden=24, layers=2), seed=0)
    for weight in moved.parameters():
        weight.data.mul_(1.1)
    assert measures.distance(moved, base) == pytest.approx(0.1, rel=1e-3)
    assert measures.distance(model, base) == 0.0
