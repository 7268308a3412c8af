"""ms-swift with each kind of objective: losses and weights against float64, however a step is put together."""

from __future__ import annotations

import pytest

pytest.importorskip("swift")

from support import by_hand, given, made, swift_runs, tiny
from support.kinds import KINDS, STEPS, of_batch, runs
from support.weighers import OfBatch

from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host

SPLIT = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
SPLITS = {"whole": {}, "split": SPLIT}
COPY = {"reference": "copy"}


def train(home, out, loss, **changes):
    """Returns the run, and what it was given."""
    config = swift_runs.config(home, out, **{"learning_rate": by_hand.RATE, "max_steps": STEPS, **changes})
    seen = []

    def prepare(trainer):
        given.move_adapters(trainer.model)
        seen.append(given.watched(trainer))

    return swift_runs.train(config, loss, prepare), seen[0]


@pytest.mark.parametrize(("model", "kind", "split"), runs(SPLITS))
def test_a_step_is_that_of_its_formula(model, kind, split, home, tmp_path):
    loss, formula = KINDS[kind]
    compares = {} if kind == "row" or model == "lora" else COPY
    changes = {**SPLITS[split], **(swift_runs.LORA if model == "lora" else {})}
    run, seen = train(home, tmp_path / "out", {**loss, **compares}, **changes)
    given.require(run.trainer, seen, changes.get("gradient_accumulation_steps", 1), formula)


def test_a_resumed_run_goes_on_with_the_schedule_and_against_the_same_model(home, tmp_path):
    loss = {**KINDS["schedule"][0], **COPY}
    saves = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole, _ = train(home, tmp_path / "a", loss, **saves)
    checkpoint = str(tmp_path / "a" / "checkpoint-2")
    resumed, seen = train(home, tmp_path / "b", loss, **saves, resume_from_checkpoint=checkpoint)
    assert len(seen.batches) == 2
    assert tiny.max_gap(whole.after, resumed.after) < 1e-7
    strengths = [entry.get("dft/strength") for entry in resumed.logs]
    assert strengths == [None, *(pytest.approx(1.5 * step / 4) for step in (1, 2, 3))]


class TestRefusals:
    def test_a_batch_that_is_split_into_micro_batches(self, home, tmp_path, monkeypatch):
        made.register(monkeypatch, OfBatch)
        with pytest.raises(ConflictError, match=r"of_batch weighs a token by all .*gradient_accumulation_steps is 4"):
            train(home, tmp_path / "out", "of_batch", **SPLIT)
        run, seen = train(home, tmp_path / "out", "of_batch")
        given.require(run.trainer, seen, 1, of_batch)

    def test_training_without_adapters_and_without_a_reference(self, home, tmp_path):
        with pytest.raises(ConflictError, match=r"`loss: asft` compares .*trains all of it.*reference: copy"):
            train(home, tmp_path / "out", "asft")

    def test_columns_which_no_template_keeps(self, home, tmp_path):
        with pytest.raises(ConflictError, match=r"`dataset`: `loss:` reads `old_logp` from the data, and ms-swift's"):
            train(home, tmp_path / "out", "psft")
