"""LLaMA-Factory's v1 trainer with each kind of objective: losses and weights against float64."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("llamafactory")

from support import factory

if factory.OLD:
    pytest.skip("its v1 trainer is another one, and refused", allow_module_level=True)

from support import by_hand, factory_v1, given
from support.kinds import KINDS, STEPS

from dft_llamafactory.trainer_v1 import LossTrainer

pytestmark = [pytest.mark.host, *factory_v1.WARNS]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return factory_v1.make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def seen(monkeypatch):
    """What a trainer was given, once it has trained."""
    found, compute = [], LossTrainer.compute_loss

    def compute_loss(self, batch):
        if not found:
            found.append(given.Given(copy.deepcopy(self.model)))
        found[0].batches.append({key: batch[key].clone() for key in factory_v1.INPUTS})
        return compute(self, batch)

    monkeypatch.setattr(LossTrainer, "compute_loss", compute_loss)
    return found


def config(home, out, **changes):
    sgd = {"optim_config": {"name": "sgd", "lr": by_hand.RATE}}
    return factory_v1.arguments(home, out, **{"max_steps": STEPS, **sgd, **changes})


@pytest.mark.parametrize("split", [{}, {"micro_batch_size": 2}], ids=["whole", "split"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["lora", "full"])
def test_a_step_is_that_of_its_formula(model, kind, split, home, tmp_path, seen):
    loss, formula = KINDS[kind]
    compares = {} if kind == "row" or model == "lora" else {"reference": "copy"}
    changes = {**split, **(factory_v1.LORA if model == "lora" else {})}
    run = factory_v1.train(config(home, tmp_path, **changes), {**loss, **compares})
    micro_batches = len(seen[0].batches) // STEPS
    assert micro_batches == (2 if split else 1)
    given.require(run.trainer, seen[0], micro_batches, formula)
