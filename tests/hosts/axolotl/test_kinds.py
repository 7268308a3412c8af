"""Axolotl with each kind of objective: losses and weights against float64, however a step is put together."""

from __future__ import annotations

import pytest

pytest.importorskip("axolotl")

from support import by_hand, given, made
from support.axolotl_runs import LORA, PACKED, prepare, write_config
from support.kinds import KINDS, STEPS, of_batch
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


def train(home, loss, **changes):
    """Returns the trainer, and what it was given."""
    from axolotl.train import execute_training

    cfg, trainer = prepare(
        write_config(home, loss=loss, **{"learning_rate": by_hand.RATE, "max_steps": STEPS, **changes})
    )
    seen = given.watched(trainer)
    execute_training(cfg, trainer, None)
    return trainer, seen


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["lora", "full"])
def test_a_step_is_that_of_its_formula(model, kind, split, home):
    loss, formula = KINDS[kind]
    compares = {} if kind == "row" or model == "lora" else COPY
    changes = {**SPLITS[split], **(LORA if model == "lora" else {})}
    trainer, seen = train(home, {**loss, **compares}, **changes)
    given.require(trainer, seen, changes.get("gradient_accumulation_steps", 1), formula)


def test_packed_texts_that_are_streamed_say_where_they_end(home):
    loss, formula = KINDS["sequence"]
    changes = {**TEXTS, **LORA, "sample_packing": True, "micro_batch_size": 2}
    trainer, seen = train(home, loss, **changes)
    given.require(trainer, seen, 1, formula)


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
