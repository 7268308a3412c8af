"""What Axolotl trains with `loss: dft` is what float64 says, in every way it trains."""

from __future__ import annotations

import pytest

pytest.importorskip("axolotl")

from support import tiny
from support.axolotl_runs import LORA, PACKED, QLORA, QWEN2, train, write_config

pytestmark = pytest.mark.host

CHAT = {
    "datasets": [{"path": "data/chat.jsonl", "type": "chat_template"}],
    "chat_template": "tokenizer_default",
}
RELORA = {
    **LORA,
    "relora": True,
    "relora_prune_ratio": 0.9,
    "jagged_restart_steps": 2,
    "max_steps": 4,
    "optimizer": "adamw_torch",
    "learning_rate": 1e-3,
}
KINDS = {
    "full": {},
    "qwen2": QWEN2,
    "lora": LORA,
    "qlora": QLORA,
    "relora": RELORA,
    "packed": PACKED,
    "packed lora": {**PACKED, **LORA},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "train_on_inputs": {"train_on_inputs": True},
    "chat": CHAT,
    "chunked_cross_entropy": {"chunked_cross_entropy": True, "train_on_inputs": True},
    "moe": {"base_model": "models/mixtral"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_logged_loss_equals_float64(kind, home):
    run = train(write_config(home, **KINDS[kind]))
    assert [entry["loss"] for entry in run.logs] == pytest.approx(run.expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["full", "lora", "qlora", "train_on_inputs", "chunked_cross_entropy"])
def test_four_micro_batches_of_one_equal_one_batch_of_four(kind, home):
    whole = train(write_config(home, **KINDS[kind]))
    split = train(write_config(home, **KINDS[kind], micro_batch_size=1, gradient_accumulation_steps=4))
    assert tiny.max_gap(whole.weights, split.weights) < 1e-6
    assert [entry["loss"] for entry in split.logs] == pytest.approx(split.expected, rel=1e-6)


def test_packed_micro_batches_of_different_fill_are_counted_together(home):
    run = train(write_config(home, **PACKED, gradient_accumulation_steps=2, max_steps=2))
    assert [entry["loss"] for entry in run.logs] == pytest.approx(run.expected, rel=1e-6)


def test_a_mapping_after_loss_sets_its_options(home):
    nll, mixed = (
        train(write_config(home, loss={"name": "dft", "alpha": alpha}, max_steps=1)).logs[0] for alpha in (0.0, 0.5)
    )
    assert nll["loss"] == pytest.approx(nll["dft/nll"], rel=1e-6)
    assert mixed["loss"] < 0.5 * nll["loss"]


def test_a_resumed_run_equals_an_uninterrupted_one(home):
    config = write_config(home, **LORA, max_steps=4, save_strategy="steps", save_steps=2)
    straight = train(config)
    resumed = train(config, resume=str(home / "out" / "config.yml" / "checkpoint-2"))
    assert tiny.max_gap(straight.weights, resumed.weights) < 1e-7
    assert resumed.logs[-1]["loss"] == pytest.approx(straight.logs[-1]["loss"], rel=1e-6)


def test_what_is_superseded_is_said_in_the_one_start_up_line(home, capfd):
    train(write_config(home, chunked_cross_entropy=True, max_steps=1))
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("dft: loss")]
    assert line == (
        "dft: loss dft(alpha=1.0, floor=0.0) is on for LlamaForCausalLM (AxolotlTrainer): kernel chunked; replaces "
        "chunked_cross_entropy"
    )
