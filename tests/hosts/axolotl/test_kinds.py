"""Axolotl with each kind of objective: losses and weights against float64, however a step is put together."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("axolotl")

from safetensors.torch import load_file
from support import by_hand, columns, given, made, tiny, training
from support.axolotl_runs import LORA, PACKED, PLUGIN, SAVED, TWO_RANKS, command, history, prepare, write_config
from support.kinds import COLUMN, KINDS, STEPS, of_batch, runs
from support.weighers import OfBatch

from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host

TEXTS = {
    "pretraining_dataset": [{"path": "json", "data_files": "data/text.jsonl", "split": "train", "type": "pretrain"}],
    "streaming": True,
    "drop": ["datasets"],
}
SPLITS = {
    "whole": {},
    "split": {"micro_batch_size": 1, "gradient_accumulation_steps": 4},
    "packed": {**PACKED, "gradient_accumulation_steps": 2},
}
COPY = {"reference": "copy"}
RATE = {"learning_rate": by_hand.RATE}


def train(home, loss, resume=None, **changes):
    """Returns the trainer, and what it was given."""
    from axolotl.train import execute_training

    cfg, trainer = prepare(write_config(home, loss=loss, **{**RATE, "max_steps": STEPS, **changes}))
    seen = given.watched(trainer)
    execute_training(cfg, trainer, resume)
    return trainer, seen


@pytest.mark.parametrize(("model", "kind", "split"), runs(SPLITS))
def test_a_step_is_that_of_its_formula(model, kind, split, home):
    loss, formula = KINDS[kind]
    compares = {} if kind == "row" or model == "lora" else COPY
    changes = {**SPLITS[split], **(LORA if model == "lora" else {})}
    trainer, seen = train(home, {**loss, **compares}, **changes)
    given.require(trainer, seen, changes.get("gradient_accumulation_steps", 1), formula)


@pytest.mark.parametrize("split", ["whole", "split", pytest.param("packed", marks=pytest.mark.newest)])
def test_a_step_is_that_of_a_formula_of_a_column(split, home):
    loss, formula = COLUMN
    rows = [{**row, "attention_mask": [1] * len(row["labels"])} for row in columns.scored_rows(96)]
    (home / "scored.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = {"datasets": [{"path": "scored.jsonl", "ds_type": "json", "type": None}], "dataset_prepared_path": "own"}
    trainer, seen = train(home, loss, **data, **SPLITS[split])
    given.require(trainer, seen, SPLITS[split].get("gradient_accumulation_steps", 1), formula)


@pytest.mark.newest
def test_packed_texts_that_are_streamed_say_where_they_end(home):
    loss, formula = KINDS["sequence"]
    changes = {**TEXTS, **LORA, "sample_packing": True, "micro_batch_size": 2}
    trainer, seen = train(home, loss, **changes)
    given.require(trainer, seen, 1, formula)


def test_a_resumed_run_goes_on_with_the_schedule_and_against_the_same_model(home):
    loss = {**KINDS["schedule"][0], **COPY}
    whole, _ = train(home, loss, max_steps=4, save_strategy="steps", save_steps=2)
    resumed, _ = train(home, loss, str(home / "out" / "config.yml" / "checkpoint-2"), max_steps=4)
    assert tiny.max_gap(training.trained(whole.model), training.trained(resumed.model)) < 1e-7
    strengths = [entry.get("dft/strength") for entry in training.train_logs(resumed)]
    assert strengths == [None, *(pytest.approx(1.5 * step / 4) for step in (1, 2, 3))]


@pytest.mark.newest
def test_two_ranks_train_what_one_process_does(home):
    loss = {**KINDS["sequence"][0], **COPY, "first": {"name": "nll", "for": 1}, "log": "top1"}
    one, _ = train(home, loss, max_steps=2)
    write_config(home, **SAVED, loss=loss, plugins=[PLUGIN, "cpu_ranks.CpuRanks"], micro_batch_size=2, **RATE)
    done = command(home, "axolotl", "train", "config.yml", "--launcher", "torchrun", *TWO_RANKS)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("dft: loss iw_sft") == 1
    for mine, theirs in zip(history(home, "out/config.yml", 2), training.train_logs(one), strict=True):
        for key in (key for key in theirs if key == "loss" or key.startswith("dft/")):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5), key
    weights = load_file(home / "out" / "config.yml" / "checkpoint-2" / "model.safetensors")
    assert tiny.max_gap(weights, training.trained(one.model)) < 1e-6


@pytest.mark.newest
class TestRefusals:
    def test_a_batch_that_is_split_into_micro_batches(self, home, monkeypatch):
        made.register(monkeypatch, OfBatch)
        with pytest.raises(ConflictError, match=r"of_batch weighs a token by all .*gradient_accumulation_steps is 2"):
            train(home, "of_batch", micro_batch_size=2, gradient_accumulation_steps=2)
        trainer, seen = train(home, "of_batch")
        given.require(trainer, seen, 1, of_batch)

    def test_full_training_without_a_reference(self, home):
        with pytest.raises(ValueError, match=r"`loss: asft` compares .*this config trains all of it.*reference: copy"):
            train(home, "asft")

    def test_adapters_that_are_merged_into_their_base(self, home):
        merges = {**LORA, "relora": True, "jagged_restart_steps": 2, "optimizer": "adamw_torch"}
        with pytest.raises(ValueError, match=r"`relora`: ReLoRA merges .* the base model .* `reference: copy`"):
            train(home, "prift", **merges)

    @pytest.mark.parametrize(
        "changes",
        [
            {"pretraining_sample_concatenation": True},
            {"sample_packing": True, "micro_batch_size": 1, "pretrain_multipack_attn": False},
        ],
        ids=["concatenated", "packed across"],
    )
    def test_texts_of_which_nobody_says_where_they_end(self, changes, home):
        with pytest.raises(ConflictError, match="without a word of where one ends, and `loss:` looks at whole"):
            train(home, "iw_sft", **TEXTS, **LORA, **changes)
