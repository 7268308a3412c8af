"""The step of a batch is the same in any split, whoever stands between the trainer and the model."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from datasets import Dataset
from support import between, tiny, training
from transformers import Trainer

from dft_plugin import activate
from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host

SPLITS = {"whole": (4, 1), "halves": (2, 2), "single": (1, 4)}


def trained(make, tmp_path, split, mixin=None, loss="dft", accepts=None, **changes):
    size, steps = SPLITS[split]
    model = tiny.llama()
    if accepts is not None:
        model.accepts_loss_kwargs = accepts
    trainer = make(
        tmp_path,
        model,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=steps,
        **{"max_steps": 2, **changes},
    )
    if mixin is not None:
        trainer.__class__ = type("Own", (mixin, type(trainer)), {})
    activate(trainer, loss)
    trainer.train()
    return training.trained(trainer.model), training.losses(trainer)


def same(left, right):
    assert tiny.max_gap(left[0], right[0]) < 1e-6
    assert left[1] == pytest.approx(right[1], rel=1e-5)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return trained(training.trainer, tmp_path_factory.mktemp("reference"), "whole")


@pytest.mark.parametrize(
    "accepts", [None, pytest.param(False, marks=pytest.mark.full)], ids=["", "accepts_loss_kwargs=False"]
)
@pytest.mark.parametrize("mixin", between.BETWEEN, ids=lambda mixin: mixin.__name__)
def test_every_split_of_a_plain_trainer_takes_the_same_step(mixin, accepts, tmp_path, reference):
    for split in SPLITS:
        if (mixin, accepts) == (between.StepPassesOn, False) and split != "whole":
            # There is no count that it could pass on, and it does not divide: stock's step is too large here.
            with pytest.raises(ConflictError, match="does not divide the loss"):
                trained(training.trainer, tmp_path, split, mixin, accepts=accepts)
        else:
            same(trained(training.trainer, tmp_path, split, mixin, accepts=accepts), reference)


@pytest.mark.parametrize("accepts", [None, False], ids=["", "accepts_loss_kwargs=False"])
def test_a_model_that_takes_no_count_is_no_matter(accepts, tmp_path, reference):
    for split in SPLITS:
        same(trained(training.trainer, tmp_path, split, accepts=accepts), reference)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
@pytest.mark.parametrize("accepts", [None, False], ids=["", "accepts_loss_kwargs=False"])
@pytest.mark.parametrize(
    "mixin",
    [
        None,
        between.Positional,
        between.Drops,
        between.DropsAndSays,
        between.StepDropsOnTheWayUp,
        between.StepDivides,
        between.StepPassesOn,
    ],
)
def test_every_split_of_an_sft_trainer_takes_the_same_step(mixin, accepts, tmp_path, reference):
    for split in SPLITS:
        same(trained(training.sft_trainer, tmp_path, split, mixin, accepts=accepts), reference)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
def test_an_sft_trainer_whose_compute_loss_drops_the_count_is_refused(tmp_path, reference):
    """TRL divides by what it is given, and we are not asked."""
    same(trained(training.sft_trainer, tmp_path, "whole", between.DropsOnTheWayUp), reference)
    with pytest.raises(ConflictError, match=r"Own.compute_loss calls SFTTrainer's without num_items_in_batch"):
        trained(training.sft_trainer, tmp_path, "halves", between.DropsOnTheWayUp)


def test_a_step_that_neither_passes_the_count_on_nor_divides_is_refused(tmp_path, reference):
    class StepDoesNeither:
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            return loss.detach()

    class StepGoesByItself(StepDoesNeither):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            loss.backward()
            return loss.detach()

    for mixin in (StepDoesNeither, StepGoesByItself):
        same(trained(training.trainer, tmp_path, "whole", mixin), reference)
        with pytest.raises(ConflictError, match=r"Own.training_step calls compute_loss without num_items_in_batch"):
            trained(training.trainer, tmp_path, "halves", mixin)


def without_targets(trainer, count):
    """The first rows have none, and come first."""
    rows = training.rows(24)
    for row in rows[:count]:
        row["labels"] = [-100] * len(row["input_ids"])
    trainer.train_dataset = Dataset.from_list(rows)
    trainer._get_train_sampler = lambda *args: torch.utils.data.SequentialSampler(trainer.train_dataset)


NEEDS_TRL = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")


@pytest.mark.parametrize(
    ("kind", "mixin", "message"),
    [
        (
            "trainer",
            between.StepDoesNotDivide,
            "does not divide the loss by the 2 accumulation steps.*multiplied by 1,",
        ),
        pytest.param("sft_trainer", between.DropsOnTheWayUp, "without num_items_in_batch", marks=NEEDS_TRL),
        pytest.param("sft_trainer", between.HalvesAndDrops, "without num_items_in_batch", marks=NEEDS_TRL),
    ],
)
def test_a_micro_batch_without_targets_ends_no_check(kind, mixin, message, tmp_path):
    trainer = getattr(training, kind)(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    without_targets(trainer, 2)
    trainer.__class__ = type("Own", (mixin, type(trainer)), {})
    activate(trainer)
    with pytest.raises(ConflictError, match=message):
        trainer.train()


@NEEDS_TRL
def test_a_factor_of_ones_own_is_no_dropped_count(tmp_path):
    whole, _ = trained(training.sft_trainer, tmp_path, "whole", between.HalvesAndPassesOn)
    for split in SPLITS:
        made, _ = trained(training.sft_trainer, tmp_path, split, between.HalvesAndPassesOn)
        assert tiny.max_gap(made, whole) < 1e-6
    plain, _ = trained(training.sft_trainer, tmp_path, "halves", max_steps=1)
    half, _ = trained(training.sft_trainer, tmp_path, "halves", between.HalvesAndPassesOn, max_steps=1)
    start = dict(tiny.llama().named_parameters())
    for name, weight in half.items():
        assert torch.allclose(2 * (weight - start[name]), plain[name] - start[name], atol=1e-6)


def test_a_smaller_last_step_that_is_divided_by_the_full_number_is_refused(tmp_path):
    """Six rows, four to a step: the second step has two micro-batches, and a half is right for each."""

    def train(mixin):
        trainer = training.trainer(
            tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=-1, num_train_epochs=1
        )
        trainer.train_dataset = trainer.train_dataset.select(range(6))
        trainer.__class__ = type("Own", (mixin, Trainer), {})
        activate(trainer)
        trainer.train()

    train(between.StepDividesInPlace)
    for mixin in (between.StepDivides, between.StepDividesAndGoesByItself):
        with pytest.raises(ConflictError, match=r"by the 2 accumulation steps.*multiplied by 0.25"):
            train(mixin)


def test_a_regulariser_in_the_step_is_the_users_own(tmp_path, reference):
    class Regularised:
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs)) / self.current_gradient_accumulation_steps
            self.accelerator.backward(loss + 0.0 * model.lm_head.weight.square().mean() + 1)
            return loss.detach()

    same(trained(training.trainer, tmp_path, "halves", Regularised), reference)


def test_a_regulariser_beside_the_loss_is_the_users_own(tmp_path):
    class Regularised:
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            return loss + 0.01 * model.lm_head.weight.square().mean()

    plain, _ = trained(training.trainer, tmp_path, "halves", max_steps=1)
    with_it, _ = trained(training.trainer, tmp_path, "halves", Regularised, max_steps=1)
    start = tiny.llama().lm_head.weight.detach()
    moved = plain["lm_head.weight"] - with_it["lm_head.weight"]
    assert torch.allclose(moved, 2 * 0.01 * 2 * start / start.numel(), atol=1e-7)


def test_collators_that_give_shifted_labels_are_counted_by_them(tmp_path):
    def collate(features):
        batch = training.collate(features)
        shifted = torch.nn.functional.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
        # Only what the model is to be scored on: half of the targets.
        shifted[:, ::2] = -100
        return {**batch, "shift_labels": shifted}

    made = []
    for split in SPLITS:
        size, steps = SPLITS[split]
        trainer = training.trainer(
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            remove_unused_columns=False,
        )
        trainer.data_collator = collate
        activate(trainer)
        trainer.train()
        made.append((training.trained(trainer.model), training.losses(trainer)))
        for entry in training.train_logs(trainer):
            assert entry["loss"] == pytest.approx(entry["dft/loss"], abs=1e-4 if training.ROUNDS_LOSS else 1e-7)
    same(made[0], made[1])
    same(made[0], made[2])


@pytest.mark.parametrize("split", SPLITS)
def test_the_first_token_of_a_row_is_no_target_and_is_not_counted(split, tmp_path):
    size, steps = SPLITS[split]
    trainer = training.trainer(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
    whole = [{**row, "labels": row["input_ids"]} for row in training.rows()]
    trainer.train_dataset = Dataset.from_list(whole)
    activate(trainer, "nll")
    trainer.train()
    for entry in training.train_logs(trainer):
        assert entry["loss"] == pytest.approx(entry["dft/nll"], rel=1e-4 if training.ROUNDS_LOSS else 1e-6)


def test_a_last_step_of_fewer_micro_batches_divides_by_its_own_targets(tmp_path):
    """Six rows, four to a step: the second step has two."""
    made = []
    for mixin in (None, between.Drops):
        for split in SPLITS:
            size, steps = SPLITS[split]
            trainer = training.trainer(
                tmp_path,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=steps,
                max_steps=-1,
                num_train_epochs=1,
            )
            trainer.train_dataset = trainer.train_dataset.select(range(6))
            if mixin is not None:
                trainer.__class__ = type("Own", (mixin, Trainer), {})
                trainer.model_accepts_loss_kwargs = False
            activate(trainer)
            trainer.train()
            assert trainer.state.global_step == 2
            made.append((training.trained(trainer.model), training.losses(trainer)))
    for other in made[1:]:
        same(made[0], other)
