"""Evaluations by a user's own `prediction_step` and `compute_loss`: the own call is told, each row is counted once."""

from __future__ import annotations

import importlib.util

import peft
import pytest
import torch
from datasets import Dataset
from support import between, passes, tiny, training

from dft_plugin import activate
from dft_plugin.errors import ConflictError
from dft_plugin.hf.batch_parts import BatchParts

pytestmark = pytest.mark.host

EVAL = training.rows(10, seed=1)
MAKE = {"transformers": training.trainer, "trl": training.sft_trainer}


@pytest.fixture(params=MAKE)
def make(request, tmp_path):
    if request.param == "trl" and importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is not installed")

    def made(mixin, model=None, loss="dft", **changes):
        trainer = MAKE[request.param](tmp_path, model or tiny.llama(), **{"learning_rate": 0.0, **changes})
        trainer.__class__ = type("Own", (mixin, type(trainer)), {})
        activate(trainer, loss)
        return trainer

    return made


def check(trainer, metrics=None):
    metrics = trainer.evaluate() if metrics is None else metrics
    model = trainer.model
    assert passes.of(metrics, "eval_") == pytest.approx(passes.statistics(model, EVAL, "eval_"), rel=1e-5)
    expected = passes.stock_eval_loss(model, passes.in_batches(EVAL, 4))
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)


def adapted():
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny.llama(), peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    return model


class ReferenceFirst:
    references = ()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with torch.no_grad(), self.model.disable_adapter():
            self.references = (*self.references, float(model(**inputs).loss))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)


def test_a_reference_without_adapters_before_the_own_call_gets_cross_entropy_and_is_not_counted(make):
    trainer = make(ReferenceFirst, adapted())
    check(trainer)
    with trainer.model.disable_adapter():
        nll, _ = passes.losses(trainer.model, EVAL[:4])
    assert trainer.references[0] == pytest.approx(float(nll.mean()), rel=1e-5)


class AsksTwice:
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        result = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad():
            self.asked = self.compute_loss(model, self._prepare_inputs(inputs))
        return result


def test_a_step_that_asks_for_its_loss_twice_counts_once(make):
    trainer = make(AsksTwice)
    check(trainer)
    assert torch.isfinite(trainer.asked)


def test_a_step_that_calls_itself_on_parts_of_its_batch_counts_each_row_once(tmp_path):
    trainer = training.trainer(tmp_path, tiny.llama())
    trainer.__class__ = type("Own", (between.InHalves, type(trainer)), {})
    activate(trainer)
    metrics = trainer.evaluate()
    assert passes.of(metrics, "eval_") == pytest.approx(passes.statistics(trainer.model, EVAL, "eval_"), rel=1e-5)


@pytest.mark.parametrize("sizes", [(4,), (2, 2), (1, 1, 1, 1), (4, 4), (2, 2, 4), (3, 1, 2)])
@pytest.mark.parametrize("real", [None, [True, True, True, False], [False] * 4])
def test_parts_take_each_row_once(sizes, real):
    labels = torch.arange(12).reshape(4, 3)
    parts = BatchParts({"labels": labels}, None if real is None else torch.tensor(real), pytest.fail)
    counted, start = [], 0
    for size in sizes:
        start = 0 if start + size > 4 else start
        part = labels[start : start + size]
        counts, mask = parts.take({"labels": part})
        if counts:
            counted += part[:, 0].tolist() if mask is None else part[mask][:, 0].tolist()
        start = (start + size) % 4
    kept = real or [True] * 4
    assert counted == [row for row, is_real in zip(labels[:, 0].tolist(), kept, strict=True) if is_real]


ROWS = torch.arange(1, 13).reshape(4, 3)


@pytest.mark.parametrize("order", [[2, 3], [3, 2, 1, 0], [0, 1, 2]], ids=["later part", "turned over", "one dropped"])
def test_rows_out_of_their_order_are_counted_and_named(order):
    said = []
    parts = BatchParts({"labels": ROWS}, torch.tensor([True, False, True, False]), said.append)
    assert parts.take({"labels": ROWS[order].flip(1)}) == (True, None)
    assert "are not those of its batch in their order" in said[0]


@pytest.mark.parametrize("change", ["labels masked", "tokens changed", "trimmed", "grown"])
def test_rows_that_a_step_changes_are_still_the_rows_of_the_batch(change):
    batch = {"input_ids": ROWS, "labels": ROWS.clone()}
    given = {
        "labels masked": {"input_ids": ROWS, "labels": torch.full_like(ROWS, -100)},
        "tokens changed": {"input_ids": ROWS * 2, "labels": ROWS},
        "trimmed": {"labels": ROWS[:, :2]},
        "grown": {"labels": torch.cat([ROWS, torch.full_like(ROWS, -100)], 1)},
    }[change]
    real = torch.tensor([True, True, True, False])
    counts, mask = BatchParts(batch, real, pytest.fail).take(given)
    assert counts
    assert mask.tolist() == real.tolist()


class ReadsLogits:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch=num_items_in_batch)
        self.seen = outputs.logits.argmax(-1).shape
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("do", ["train", "evaluate"])
def test_logits_that_a_compute_loss_reads_are_made_where_asked_for_and_named_where_not(do, tmp_path):
    def made(loss):
        trainer = training.trainer(tmp_path, tiny.llama(), max_steps=1)
        trainer.__class__ = type("Own", (ReadsLogits, type(trainer)), {})
        activate(trainer, loss)
        return trainer

    with pytest.raises(ConflictError, match=r"outputs\.logits.* kernel: logits\}` to have them"):
        getattr(made("dft"), do)()
    trainer = made({"name": "dft", "kernel": "logits"})
    getattr(trainer, do)()
    assert trainer.seen[0] <= 4
    trainer.prediction_step(trainer.model, next(iter(trainer.get_eval_dataloader())), True)


class FailsBefore:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return None.attribute


def test_an_error_before_our_loss_is_the_users_own(tmp_path):
    trainer = training.trainer(tmp_path, tiny.llama(), max_steps=1)
    trainer.__class__ = type("Own", (FailsBefore, type(trainer)), {})
    activate(trainer)
    with pytest.raises(AttributeError, match="attribute"):
        trainer.train()


def test_rows_of_a_dataset_without_labels_are_no_matter(tmp_path):
    trainer = training.trainer(tmp_path, tiny.llama())
    activate(trainer)
    parts = BatchParts({"input_ids": torch.ones(2, 3)}, None, pytest.fail)
    assert parts.take({"input_ids": torch.ones(2, 3)}) == (True, None)
    assert parts.take({"input_ids": torch.ones(2, 3)}) == (False, None)
    trainer.eval_dataset = Dataset.from_list(EVAL)
    check(trainer)


def masked(labels, columns):
    kept = torch.full_like(labels, -100)
    kept[:, columns] = labels[:, columns]
    return kept


HALVES = (slice(0, 2), slice(2, 4))
ASKS = {
    "each half twice": [{"labels": ROWS[half]} for half in HALVES for _ in range(2)],
    "the second half first": [{"labels": ROWS[half]} for half in reversed(HALVES)],
    "a row, then all": [{"labels": ROWS[:1]}, {"labels": ROWS}],
    "all, then a row": [{"labels": ROWS}, {"labels": ROWS[2:3]}],
    "in two pieces of each row": [
        {"input_ids": ROWS, "labels": masked(ROWS, slice(0, 2))},
        {"input_ids": ROWS, "labels": masked(ROWS, slice(2, 3))},
    ],
    "overlapping": [{"labels": ROWS[0:3]}, {"labels": ROWS[1:4]}],
}


@pytest.mark.parametrize("asks", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize("real", [None, [True, True, True, False]])
def test_parts_count_each_target_once_whatever_is_asked(asks, real):
    parts = BatchParts({"input_ids": ROWS, "labels": ROWS}, None if real is None else torch.tensor(real), pytest.fail)
    counted = []
    for given in asks:
        counts, mask = parts.take(given)
        if counts:
            targets = given["labels"][:, 1:]
            here = torch.ones_like(targets, dtype=torch.bool)
            if mask is not None:
                here = mask[:, :-1] if mask.dim() == 2 else mask[:, None].expand(targets.shape)
            counted += targets[here & (targets != -100)].tolist()
    expected = ROWS[:, 1:] if real is None else ROWS[torch.tensor(real)][:, 1:]
    assert sorted(counted) == sorted(expected.flatten().tolist())
