"""What Axolotl trains with `loss: dft` is what float64 says, in every way it trains."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

pytest.importorskip("axolotl")

from support import tiny
from support.axolotl_runs import LORA, PACKED, QLORA, QWEN2, since, train, write_config

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
# As the pretraining docs of Axolotl have it: streamed, so without a length, and without `datasets`.
PRETRAIN = {
    "pretraining_dataset": [{"path": "json", "data_files": "data/text.jsonl", "split": "train", "type": "pretrain"}],
    "streaming": True,
    "drop": ["datasets"],
}
STREAMED = [{"path": "json", "data_files": "data/alpaca.jsonl", "split": "train", "type": "alpaca"}]
IMAGES = {
    "base_model": "models/llava",
    "processor_type": "AutoProcessor",
    "skip_prepare_dataset": True,
    "remove_unused_columns": False,
    "chat_template": "tokenizer_default",
    "datasets": [{"path": "data/images.jsonl", "ds_type": "json", "type": "chat_template"}],
}
LISA = {"lisa_step_interval": 1, "lisa_n_layers": 1, "lisa_layers_attribute": "model.layers"}
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
    "pretraining": PRETRAIN,
    "pretraining a batch of one": {**PRETRAIN, "micro_batch_size": 1},
    "concatenated pretraining": {**PRETRAIN, "pretraining_sample_concatenation": True},
    "packed pretraining": {**PRETRAIN, "sample_packing": True, "micro_batch_size": 2},
    "packed pretraining that attends across": {
        **PRETRAIN,
        "sample_packing": True,
        "micro_batch_size": 1,
        "pretrain_multipack_attn": False,
    },
    "streaming": {"streaming": True},
    "packed streaming": {"streaming": True, "sample_packing": True, "datasets": STREAMED},
    "images": IMAGES,
    "images lora": {**IMAGES, **LORA, "lora_target_linear": False, "lora_target_modules": ["q_proj", "v_proj"]},
    "lora dropout": {**LORA, "lora_dropout": 0.5},
    "lora on the head": {**LORA, "lora_target_linear": False, "lora_target_modules": ["q_proj", "lm_head"]},
    "lora with head and embeddings": {**LORA, "lora_modules_to_save": ["lm_head", "embed_tokens"]},
    "dora": {**LORA, "peft_use_dora": True},
    "layer_offloading": {**LORA, "layer_offloading": True},
    "neftune": {"neftune_noise_alpha": 5.0},
    "lisa": LISA,
    "qat": {"qat": {"weight_dtype": "int4", "group_size": 32}},
    "include_tkps": {"include_tkps": True},
}
NEWEST = ("full", "qlora", "packed lora", "chat", "moe", "packed streaming", "images", "qat")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.newest) if kind in NEWEST else kind for kind in KINDS]
)
def test_every_logged_loss_equals_float64(kind, home):
    run = train(write_config(home, **KINDS[kind]))
    assert [entry["loss"] for entry in run.logs] == pytest.approx(run.expected, rel=1e-6)


@pytest.mark.newest
@since("0.20")
def test_mamba(home, monkeypatch):
    """Its trainer of 0.19 is gone."""
    # transformers looks for classes to replace in all its modules; the old names of some need torchvision.
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.") and name.endswith("_fast") and module.__file__ is None:
            monkeypatch.delitem(sys.modules, name)
    run = train(write_config(home, base_model="models/mamba", attn_implementation="eager"))
    assert [entry["loss"] for entry in run.logs] == pytest.approx(run.expected, rel=1e-6)
    assert "dft/nll" in run.logs[0]


def test_tiled_mlp(home, monkeypatch):
    """Its forward imports DeepSpeed, for a class that is used under DeepSpeed only."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    name = "deepspeed"
    for part in ("", ".runtime", ".sequence_parallel", ".ulysses_sp"):
        name += part
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    module.TiledMLP = object
    monkeypatch.setattr(LlamaMLP, "forward", LlamaMLP.forward)
    # A batch of one: Axolotl's backward pass is wrong for more, whichever the loss.
    whole = train(write_config(home, micro_batch_size=1))
    tiled = train(write_config(home, micro_batch_size=1, tiled_mlp=True, tiled_mlp_num_shards=3))
    assert LlamaMLP.forward.__name__ == "tiled_mlp_forward"
    assert [entry["loss"] for entry in tiled.logs] == pytest.approx(tiled.expected, rel=1e-6)
    assert tiny.max_gap(whole.weights, tiled.weights) < 1e-6


def test_a_flattened_batch_equals_a_padded_one(home, monkeypatch):
    """Axolotl asks for an attention that keeps sequences apart. None that it takes trains on a CPU; SDPA does."""
    from transformers.data import DataCollatorWithFlattening
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for functions in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        monkeypatch.setitem(functions, "flex_attention", functions["sdpa"])
    padded = train(write_config(home))
    flat = train(write_config(home, attn_implementation="flex_attention", batch_flattening=True))
    assert isinstance(flat.trainer.data_collator, DataCollatorWithFlattening)
    assert [entry["loss"] for entry in flat.logs] == pytest.approx(flat.expected, rel=1e-6)
    assert tiny.max_gap(flat.weights, padded.weights) < 1e-6


@pytest.mark.parametrize(
    "kind",
    ["full", "lora", pytest.param("qlora", marks=pytest.mark.newest), "train_on_inputs", "chunked_cross_entropy"],
)
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


@pytest.mark.newest
def test_a_resumed_run_equals_an_uninterrupted_one(home):
    config = write_config(home, **LORA, max_steps=4, save_strategy="steps", save_steps=2)
    straight = train(config)
    resumed = train(config, resume=str(home / "out" / "config.yml" / "checkpoint-2"))
    assert tiny.max_gap(straight.weights, resumed.weights) < 1e-7
    assert resumed.logs[-1]["loss"] == pytest.approx(straight.logs[-1]["loss"], rel=1e-6)


@pytest.mark.newest
def test_what_is_superseded_is_said_in_the_one_start_up_line(home, capfd):
    train(write_config(home, chunked_cross_entropy=True, max_steps=1))
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("dft: loss")]
    assert line == (
        "dft: loss dft(alpha=1.0, floor=0.0) is on for LlamaForCausalLM (AxolotlTrainer): kernel chunked; replaces "
        "chunked_cross_entropy"
    )
