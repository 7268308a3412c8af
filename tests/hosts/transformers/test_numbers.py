"""The plain Trainer with the loss active: the numbers of a step, whatever it is split into."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from support import oracle, tiny, training
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from dft_plugin import activate

pytestmark = pytest.mark.host


def first_step_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def run(trainer, loss="dft"):
    before = training.trained(trainer.model)
    activate(trainer, loss)
    trainer.train()
    assert tiny.max_gap(before, training.trained(trainer.model)) > 1e-4, "nothing was trained"
    return training.trained(trainer.model)


def quantised(tmp_path):
    tiny.llama(hidden_size=64).save_pretrained(tmp_path / "base")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return LlamaForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config, dtype=torch.float32)


MODELS = {
    "full": lambda tmp_path: tiny.llama(),
    "tied": lambda tmp_path: tiny.llama(tie_word_embeddings=True),
    "lora": lambda tmp_path: training.lora(),
    "saved-head": lambda tmp_path: training.lora(modules_to_save=["lm_head"]),
    "lora-on-head": lambda tmp_path: training.lora(target_modules=["q_proj", "lm_head"]),
    "qlora": lambda tmp_path: training.lora(quantised(tmp_path)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_first_logged_loss_equals_the_float64_loss(kind, tmp_path):
    trainer = training.trainer(tmp_path, MODELS[kind](tmp_path), max_steps=1)
    batch = first_step_batch(trainer)
    trainer.model.train()
    # bitsandbytes has another kernel without gradients, so the oracle runs with them.
    expected = oracle.causal_loss(trainer.model, batch).item()
    run(trainer)
    assert training.losses(trainer)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("loss", ["dft", {"name": "dft", "alpha": 0.5, "floor": 0.02}], ids=["dft", "alpha"])
def test_four_micro_batches_of_one_equal_one_batch_of_four(kind, loss, tmp_path):
    whole = training.trainer(tmp_path, MODELS[kind](tmp_path))
    split = training.trainer(
        tmp_path,
        MODELS[kind](tmp_path),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
    )
    assert tiny.max_gap(run(whole, loss), run(split, loss)) < 1e-6
    assert training.losses(whole) == pytest.approx(training.losses(split), rel=1e-5)


def test_alpha_zero_trains_as_stock_cross_entropy_does(tmp_path):
    stock = training.trainer(tmp_path, max_steps=1)
    stock.train()
    ours = run(training.trainer(tmp_path, max_steps=1), {"name": "dft", "alpha": 0})
    assert tiny.max_gap(training.trained(stock.model), ours) < 1e-6


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant, tmp_path):
    plain = training.trainer(tmp_path)
    checkpointed = training.trainer(
        tmp_path,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    assert tiny.max_gap(run(plain), run(checkpointed)) < 1e-7


def test_a_micro_batch_without_targets_adds_nothing(tmp_path):
    masked = training.rows()
    masked[1] = {**masked[1], "labels": [-100] * len(masked[1]["labels"])}
    trainers = []
    for size, steps in ((4, 1), (1, 4)):
        trainer = training.trainer(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        trainer.train_dataset = Dataset.from_list(masked)
        trainers.append(run(trainer))
    assert tiny.max_gap(*trainers) < 1e-6


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind, tmp_path):
    straight = run(training.trainer(tmp_path / "a", MODELS[kind](tmp_path), max_steps=4))
    first = training.trainer(tmp_path / "b", MODELS[kind](tmp_path), max_steps=4, save_strategy="steps", save_steps=2)
    run(first)
    resumed = training.trainer(tmp_path / "b", MODELS[kind](tmp_path), max_steps=4)
    activate(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert tiny.max_gap(straight, training.trained(resumed.model)) < 1e-7


def test_the_router_loss_is_trained_as_the_model_does(tmp_path):
    """Gradients of a MoE model at accumulation 1 equal stock's, with the objective set to nll."""
    stock = training.trainer(tmp_path, tiny.mixtral(), max_steps=1)
    stock.train()
    ours = training.trainer(tmp_path, tiny.mixtral(), max_steps=1)
    without = training.trainer(tmp_path, tiny.mixtral(output_router_logits=False), max_steps=1)
    kept, dropped = run(ours, "nll"), run(without, "nll")
    assert tiny.max_gap(training.trained(stock.model), kept) < 1e-6
    assert tiny.max_gap(kept, dropped) > 1e-3, "the router's loss does not show in this test"
