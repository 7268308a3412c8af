"""Counts of the targets' probabilities: those of the logits in float64, whatever the batches, and where they stand.

The same for the plain Trainer and, where TRL is installed, SFTTrainer.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from support import passes, tiny, training

from dft_plugin import activate
from dft_plugin.core.bands import EDGES
from dft_plugin.errors import ConflictError
from dft_plugin.hf.attachment import Attachment
from dft_plugin.runs.logs import load

pytestmark = pytest.mark.host

TRAIN, EVAL, OTHER = training.rows(), training.rows(10, seed=1), training.rows(7, seed=2)
MAKE = {"transformers": training.trainer, "trl": training.sft_trainer}


@pytest.fixture(params=MAKE)
def make(request, tmp_path):
    if request.param == "trl" and importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is not installed")

    def made(out="run", **changes):
        return MAKE[request.param](tmp_path / out, spread(), **{"learning_rate": 0.0, **changes})

    return made


@functools.cache
def learned():
    """A model that has learned some of the targets, so that many bands have some."""
    model, batch = tiny.llama(), training.collate([*TRAIN[::2], *EVAL[::2]])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model


def spread():
    return copy.deepcopy(learned())


def read(out):
    return [json.loads(line) for line in (out / "dft_probabilities.jsonl").read_text().splitlines()]


def by_hand(model, rows):
    """How many targets are in each band, from the logits in float64."""
    nll, _ = passes.losses(model, rows)
    p = (-nll).exp().tolist()
    counts = [sum(low <= one < high for one in p) for low, high in pairwise(EDGES)]
    counts[-1] += p.count(1.0)
    return counts


def path_of(trainer):
    return Path(trainer.args.output_dir)


def kept(trainer):
    return read(path_of(trainer))


def of(lines, what):
    return [(line["step"], line["counts"]) for line in lines if line["of"] == what]


def taken(trainer, count):
    """The first rows that a training takes, in its order."""
    rows = []
    for batch in trainer.get_train_dataloader():
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            real = int(mask.sum())
            rows.append({"input_ids": ids[:real].tolist(), "labels": labels[:real].tolist()})
    return rows[:count]


def test_the_first_and_the_last_interval_and_each_evaluation(make):
    trainer = make(max_steps=5, logging_steps=2, eval_strategy="steps", eval_steps=2, eval_on_start=True)
    rows = taken(trainer, 16)
    activate(trainer)
    trainer.train()
    trainer.evaluate()
    lines = kept(trainer)
    assert {tuple(line["edges"]) for line in lines} == {EDGES}
    evaluated = by_hand(trainer.model, EVAL)
    assert sum(count > 0 for count in evaluated) >= 5, "no band to tell apart"
    # Ten rows in batches of four: the last one is smaller.
    # Newer Trainers evaluate at the end, too.
    assert [*dict(of(lines, "eval"))] == [0, 2, 4, 5]
    assert all(counts == evaluated for _, counts in of(lines, "eval"))
    assert of(lines, "training") == [(2, by_hand(trainer.model, rows[:8])), (4, by_hand(trainer.model, rows[8:16]))]


def test_micro_batches_count_as_their_batch(make):
    found = []
    for steps in (1, 4):
        trainer = make(str(steps), per_device_train_batch_size=4 // steps, gradient_accumulation_steps=steps)
        activate(trainer)
        trainer.train()
        found.append(of(kept(trainer), "training"))
    assert found[0] == found[1]


def test_a_resumed_run_goes_on_in_its_file_and_a_new_one_begins_it_anew(make):
    saves = {"save_strategy": "steps", "save_steps": 1}
    trainer = make(max_steps=2, **saves)
    activate(trainer)
    trainer.train()
    first = kept(trainer)
    path = path_of(trainer) / "dft_probabilities.jsonl"
    # As if the power had failed in the middle of a line.
    path.write_text(path.read_text() + '{"of": "tra')
    resumed = make(max_steps=4, **saves)
    activate(resumed)
    resumed.train(resume_from_checkpoint=str(path_of(trainer) / "checkpoint-2"))
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines[:2]] == first
    assert [json.loads(line)["step"] for line in lines[3:]] == [3, 4]
    anew = make(max_steps=1)
    activate(anew)
    anew.evaluate()
    assert len(path.read_text().splitlines()) == len(lines), "before it trains, nothing is lost"
    anew.train()
    assert [(line["of"], line["step"]) for line in kept(anew)] == [("eval", 0), ("training", 1)]


def test_a_resumption_that_is_refused_leaves_the_file(make):
    trainer = make(max_steps=1, save_strategy="steps", save_steps=1)
    activate(trainer)
    trainer.train()
    before = kept(trainer)
    other = make(max_steps=2)
    activate(other, "nll")
    with pytest.raises(ConflictError):
        other.train(resume_from_checkpoint=str(path_of(trainer) / "checkpoint-1"))
    assert kept(trainer) == before


def test_several_evaluation_sets_are_told_apart(make):
    trainer = make(eval_strategy="steps", eval_steps=1, max_steps=1)
    trainer.eval_dataset = {"a": Dataset.from_list(EVAL), "b": Dataset.from_list(OTHER)}
    activate(trainer)
    trainer.train()
    for name, rows in (("a", EVAL), ("b", OTHER)):
        assert of(kept(trainer), f"eval_{name}") == [(1, by_hand(trainer.model, rows))]


def test_who_only_evaluates_writes_nothing(make):
    trainer = make()
    activate(trainer)
    trainer.evaluate()
    assert not (path_of(trainer) / "dft_probabilities.jsonl").exists()


def test_no_loss_no_file(make):
    trainer = make(max_steps=1, eval_strategy="steps", eval_steps=1)
    attached = activate(trainer)
    attached.detach()
    trainer.train()
    assert not (path_of(trainer) / "dft_probabilities.jsonl").exists()
    assert not isinstance(trainer.model.__dict__.get("forward"), Attachment)


def test_the_log_of_numbers_holds_no_lists(make):
    trainer = make(max_steps=1, eval_strategy="steps", eval_steps=1)
    activate(trainer)
    trainer.train()
    values = [value for entry in trainer.state.log_history for value in entry.values()]
    assert all(isinstance(value, (int, float)) for value in values)


def test_a_comparison_reads_what_a_run_has_written(make):
    trainer = make(max_steps=2, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1)
    activate(trainer, {"name": "dft", "alpha": 0.5})
    trainer.train()
    for path in (path_of(trainer), path_of(trainer) / "checkpoint-2" / "trainer_state.json"):
        run = load(path)
        assert run.loss == "dft(alpha=0.5, floor=0.0)"
        assert run.written == {"name": "dft", "alpha": 0.5, "floor": 0.0, "kernel": "auto"}
        assert [(one.of, one.step) for one in run.histograms] == [
            ("training", 1),
            ("eval", 1),
            ("eval", 2),
            ("training", 2),
        ]
        assert run.histograms[-2].counts == tuple(by_hand(trainer.model, EVAL))
