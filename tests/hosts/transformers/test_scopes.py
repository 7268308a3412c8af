"""Weights that look at other tokens: a whole sequence, however a step is split; a whole step, which must not be."""

from __future__ import annotations

import pytest
import torch
from support import by_hand, tiny, training
from support.weighers import OfBatch, OfSequence
from transformers import DataCollatorWithFlattening

from dft_plugin import activate, attach
from dft_plugin.errors import ConflictError, LabelError

pytestmark = pytest.mark.host


def run(out, loss, size, steps, model=None, collator=None, **changes):
    trainer = training.trainer(
        out, model, per_device_train_batch_size=size, gradient_accumulation_steps=steps, **changes
    )
    trainer.data_collator = collator or trainer.data_collator
    rows = by_hand.watched(trainer)
    activate(trainer, loss)
    trainer.train()
    return trainer, rows


def close(trainer, expected):
    ours = {name: value.double() for name, value in training.trained(trainer.model).items()}
    assert tiny.max_gap(ours, expected.weights) < expected.tolerance
    assert training.losses(trainer) == pytest.approx(expected.losses, rel=1e-5)


@pytest.mark.parametrize(("size", "steps"), [(4, 1), (1, 4)])
def test_a_sequence_is_whole_in_any_micro_batch(size, steps, tmp_path):
    trainer, rows = run(tmp_path, OfSequence(), size, steps, learning_rate=by_hand.RATE)
    close(trainer, by_hand.trained(tiny.llama(), by_hand.in_steps(rows, 4, 3), by_hand.of_sequence))


def test_packed_sequences_are_told_apart_by_their_positions(tmp_path):
    packed = DataCollatorWithFlattening(return_position_ids=True, separator_id=-100)
    trainer, rows = run(tmp_path, OfSequence(), 2, 2, collator=packed, learning_rate=by_hand.RATE)
    # Position ids alone keep the packed rows apart in attention, too.
    close(trainer, by_hand.trained(tiny.llama(), by_hand.in_steps(rows, 4, 3), by_hand.of_sequence))


@pytest.mark.parametrize("model", ["full", "lora"])
def test_a_batch_that_is_a_step_is_trained(model, tmp_path):
    made = None if model == "full" else training.lora()
    trainer, rows = run(tmp_path, OfBatch(), 4, 1, made, learning_rate=by_hand.RATE, max_steps=1)
    if model == "full":
        close(trainer, by_hand.trained(tiny.llama(), by_hand.in_steps(rows, 4, 1), by_hand.of_batch))
    else:
        loss, share = by_hand.scored(training.lora().double(), rows[:4], by_hand.of_batch)
        assert training.losses(trainer) == pytest.approx([loss.sum().item() / len(share)], rel=1e-5)


class TestRefusals:
    def test_a_batch_that_is_split_into_micro_batches(self, tmp_path):
        trainer = training.trainer(tmp_path, gradient_accumulation_steps=2)
        with pytest.raises(ConflictError, match=r"of_batch weighs a token by all .*gradient_accumulation_steps is 2"):
            activate(trainer, OfBatch())
        assert tiny.max_gap(training.trained(trainer.model), tiny.weights(tiny.llama())) == 0

    def test_a_batch_that_is_split_over_ranks(self, tmp_path, monkeypatch):
        trainer = training.trainer(tmp_path)
        monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
        with pytest.raises(ConflictError, match=r"of_batch weighs .*, and 2 ranks have a part of it each"):
            activate(trainer, OfBatch())

    def test_a_sequence_that_is_split_over_ranks(self, tmp_path, monkeypatch):
        trainer = training.trainer(tmp_path)
        monkeypatch.setattr("dft_plugin.hf.splits.context_parallel_size", lambda trainer: 2)
        with pytest.raises(ConflictError, match="of_sequence looks at whole sequences, and context parallelism"):
            activate(trainer, OfSequence())
        activate(trainer, "dft")

    def test_a_part_of_a_step_in_a_loop_of_ones_own(self):
        model, batch = tiny.llama().train(), tiny.batch()
        attach(model, OfBatch())
        with pytest.raises(LabelError, match="of_batch weighs a token by all others of an optimizer step"):
            model(**batch, num_items_in_batch=torch.tensor(40))
        model(**batch)
