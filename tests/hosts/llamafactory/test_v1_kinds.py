"""LLaMA-Factory's v1 trainer with each kind of objective: losses and weights against float64."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("llamafactory")

from support import factory

if factory.OLD:
    pytest.skip("its v1 trainer is another one, and refused", allow_module_level=True)

from support import by_hand, factory_v1, given, made
from support.kinds import KINDS, STEPS, runs
from support.weighers import OfBatch

from dft_llamafactory.trainer_v1 import LossTrainer
from dft_plugin.errors import ConflictError

pytestmark = [pytest.mark.host, *factory_v1.WARNS]


SPLITS = {"whole": {}, "split": {"micro_batch_size": 2}}


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


def two_ranks(home, folder, loss, **changes):
    """Run `dft train` on two ranks."""
    config = factory_v1.command_arguments(home, folder / "out", micro_batch_size=1, global_batch_size=4, **changes)
    factory.write_config(folder / "v1.yaml", **config, loss=loss)
    environment = {"USE_V1": "1", **factory_v1.two_ranks(folder)}
    return factory.command("train", "v1.yaml", cwd=folder, environment=environment, script="dft")


@pytest.mark.parametrize(("model", "kind", "split"), runs(SPLITS))
def test_a_step_is_that_of_its_formula(model, kind, split, home, tmp_path, seen):
    loss, formula = KINDS[kind]
    compares = {} if kind == "row" or model == "lora" else {"reference": "copy"}
    changes = {**SPLITS[split], **(factory_v1.LORA if model == "lora" else {})}
    run = factory_v1.train(config(home, tmp_path, **changes), {**loss, **compares})
    micro_batches = len(seen[0].batches) // STEPS
    assert micro_batches == (2 if split == "split" else 1)
    given.require(run.trainer, seen[0], micro_batches, formula)


def test_two_ranks_train_what_one_process_does(home, tmp_path):
    loss = {**KINDS["sequence"][0], "first": {"name": "nll", "for": 1}, "log": "top1"}
    given_to_both = {**factory_v1.LORA, "max_steps": 3, "learning_rate": 0.01}
    one = factory_v1.train(factory_v1.command_arguments(home, tmp_path / "one", **given_to_both), loss)
    done = two_ranks(home, tmp_path, loss, **given_to_both)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("dft: loss iw_sft") == 1
    for mine, theirs in zip(factory_v1.history(tmp_path / "out"), one.logs, strict=True):
        for key in (key for key in theirs if key == "loss" or key.startswith("dft/")):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4), key


def test_a_copy_beside_a_model_that_ranks_share_is_refused(home, tmp_path):
    loss = {"name": "asft", "reference": "copy"}
    done = two_ranks(home, tmp_path, loss, max_steps=1, dist_config={"name": "fsdp2"})
    assert done.returncode != 0
    assert "`reference: copy` was never run with a model whose weights are sharded like this one's" in done.stderr
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_full_training_without_a_reference_is_refused_before_anything_is_started(home, tmp_path, monkeypatch):
    monkeypatch.setenv("USE_V1", "1")
    with pytest.raises(ConflictError, match=r"`loss: asft` compares .*trains all of it.*reference: copy"):
        factory_v1.train(factory_v1.arguments(home, tmp_path), "asft")


def test_a_loss_that_weighs_by_a_whole_step_is_refused(home, tmp_path, monkeypatch):
    made.register(monkeypatch, OfBatch)
    with pytest.raises(ConflictError, match=r"of_batch weighs a token by all others of an optimizer step, which .*v1"):
        factory_v1.train(factory_v1.arguments(home, tmp_path), "of_batch")
