"""LLaMA-Factory with each kind of objective: losses and weights against float64, however a step is put together."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
import torch

pytest.importorskip("llamafactory")

from safetensors.torch import load_file
from support import by_hand, columns, factory, given, made, tiny, training
from support.kinds import COLUMN, KINDS, STEPS, of_batch, runs
from support.weighers import OfBatch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host

SPLIT = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
SPLITS = {
    "whole": {},
    "split": SPLIT,
    "packed": {"packing": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "neat": {"neat_packing": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
}
if factory.OLD:
    # It refuses it beside the transformers that it is tested with.
    del SPLITS["neat"]
COPY = {"reference": "copy"}


def train(home, out, loss, model="llama", **changes):
    """Returns the run, and what it was given."""
    config = factory.arguments(home, out, model, **{"learning_rate": by_hand.RATE, "max_steps": STEPS, **changes})
    seen = []

    def prepare(trainer):
        given.move_adapters(trainer.model)
        seen.append(given.watched(trainer))

    return factory.train(config, loss, prepare), seen[0]


@pytest.mark.parametrize(("model", "kind", "split"), runs(SPLITS))
def test_a_step_is_that_of_its_formula(model, kind, split, home, tmp_path):
    loss, formula = KINDS[kind]
    compares = {} if kind == "row" or model == "lora" else COPY
    changes = {**SPLITS[split], **(factory.LORA if model == "lora" else {})}
    run, seen = train(home, tmp_path, {**loss, **compares}, **changes)
    given.require(run.trainer, seen, changes.get("gradient_accumulation_steps", 1), formula, factory.ROUNDED)


@pytest.mark.parametrize("split", SPLITS)
def test_a_step_is_that_of_a_formula_of_a_column(split, home, tmp_path):
    loss, formula = COLUMN
    (tmp_path / "scored.json").write_text(json.dumps(columns.scored_chats(48)))
    keys = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    info = {"file_name": "scored.json", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": keys}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"scored": info}))
    data = {"dataset": "scored", "dataset_dir": str(tmp_path)}
    run, seen = train(home, tmp_path / "out", loss, **data, **SPLITS[split])
    given.require(run.trainer, seen, SPLITS[split].get("gradient_accumulation_steps", 1), formula, factory.ROUNDED)


def test_a_resumed_run_goes_on_with_the_schedule_and_against_the_same_model(home, tmp_path):
    loss = {**KINDS["schedule"][0], **COPY}
    whole, _ = train(home, tmp_path / "a", loss, max_steps=4, save_strategy="steps", save_steps=2)
    resumed, seen = train(
        home, tmp_path / "b", loss, max_steps=4, resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2")
    )
    assert len(seen.batches) == 2
    assert tiny.max_gap(whole.after, resumed.after) < 1e-7
    strengths = [entry.get("dft/strength") for entry in resumed.logs]
    assert strengths == [None, *(pytest.approx(1.5 * step / 4) for step in (1, 2, 3))]


def test_two_ranks_train_what_one_process_does(home, tmp_path):
    loss = {**KINDS["sequence"][0], **COPY, "first": {"name": "nll", "for": 1}, "log": "top1"}
    changes = {"max_steps": 2, "learning_rate": by_hand.RATE}
    one = factory.train(factory.arguments(home, tmp_path / "one", **changes), loss)
    halved = {"per_device_train_batch_size": 2, "ddp_backend": "gloo", "loss": loss}
    factory.write_config(tmp_path / "sft.yaml", **{**factory.arguments(home, tmp_path / "out", **changes), **halved})
    environment = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}
    done = factory.command("train", "sft.yaml", cwd=tmp_path, environment=environment, script="dft")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("dft: loss iw_sft") == 1
    for mine, theirs in zip(factory.history(tmp_path / "out"), one.logs, strict=True):
        for key in (key for key in theirs if key == "loss" or key.startswith("dft/")):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5, abs=factory.ROUNDED), key
    assert tiny.max_gap(load_file(tmp_path / "out" / "model.safetensors"), one.after) < 1e-6


@pytest.fixture(scope="module")
def seeing(home):
    """The name of a model whose positions have several axes."""
    text = {**tiny.SHAPE, "vocab_size": 132, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4}
    ids = {"image_token_id": 128, "video_token_id": 129, "vision_start_token_id": 130, "vision_end_token_id": 131}
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **ids))
    model.save_pretrained(home / "seeing")
    training.tokenizer().save_pretrained(home / "seeing")
    return "seeing"


class TestPositionsOfSeveralAxes:
    LAYERS: ClassVar = {**factory.LORA, "lora_target": "q_proj,v_proj"}

    @pytest.mark.skipif(factory.OLD, reason="refused beside these transformers")
    def test_neat_packing_says_where_examples_end(self, seeing, home, tmp_path):
        loss, formula = KINDS["sequence"]
        run, seen = train(home, tmp_path, loss, seeing, **self.LAYERS, neat_packing=True)
        given.require(run.trainer, seen, 1, formula, factory.ROUNDED)

    def test_packing_alone_does_not(self, seeing, home, tmp_path):
        config = factory.arguments(home, tmp_path, seeing, **self.LAYERS, packing=True, max_steps=1)
        with pytest.raises(ConflictError, match=r"`packing`: the positions of a packed row .* `neat_packing: true`"):
            factory.train(config, "iw_sft")
        factory.train(config, "dft")


class TestRefusals:
    def test_a_batch_that_is_split_into_micro_batches(self, home, tmp_path, monkeypatch):
        made.register(monkeypatch, OfBatch)
        with pytest.raises(ConflictError, match=r"of_batch weighs a token by all .*gradient_accumulation_steps is 4"):
            train(home, tmp_path, "of_batch", **SPLIT)
        run, seen = train(home, tmp_path, "of_batch")
        given.require(run.trainer, seen, 1, of_batch, factory.ROUNDED)

    @pytest.mark.parametrize("kind", ["full", "freeze"])
    def test_training_without_adapters_and_without_a_reference(self, kind, home, tmp_path):
        with pytest.raises(ConflictError, match=r"`loss: asft` compares .*trains all of it.*reference: copy"):
            factory.train(factory.arguments(home, tmp_path, finetuning_type=kind), "asft")

    def test_adapters_that_took_something_out_of_their_base(self, home, tmp_path):
        config = factory.arguments(home, tmp_path, **factory.LORA, pissa_init=True)
        with pytest.raises(ConflictError, match=r"init_lora_weights: pissa.* Write `reference: start`"):
            factory.train(config, "prift")
