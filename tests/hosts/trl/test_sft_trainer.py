"""TRL's SFTTrainer with the loss active: its numbers, its metrics, its own DFT as a peer."""

from __future__ import annotations

import pytest
import torch
from support import oracle, tiny, training
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from dft_plugin import activate
from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host


def run(trainer, loss="dft"):
    before = training.trained(trainer.model)
    activate(trainer, loss)
    trainer.train()
    assert tiny.max_gap(before, training.trained(trainer.model)) > 1e-5, "nothing was trained"
    return training.trained(trainer.model)


def full(tmp_path, **changes):
    return training.sft_trainer(tmp_path, **changes)


def lora(tmp_path, **changes):
    torch.manual_seed(3)
    made = training.sft_trainer(tmp_path, peft_config=training.lora_config(), **changes)
    for name, parameter in made.model.named_parameters():
        if "lora_" in name:
            # TRL casts the adapters of a quantised model to bfloat16, whose rounding would hide a gap.
            parameter.data = parameter.data.float()
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return made


def qlora(tmp_path, **changes):
    tiny.llama(hidden_size=64).save_pretrained(tmp_path / "base")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config, dtype=torch.float32)
    return lora(tmp_path, model=model, **changes)


def packed(tmp_path, **changes):
    return training.sft_trainer(tmp_path, packing=True, max_length=32, **changes)


def moe(tmp_path, **changes):
    return training.sft_trainer(tmp_path, tiny.mixtral(), **changes)


KINDS = {"full": full, "lora": lora, "qlora": qlora, "packed": packed}


@pytest.mark.parametrize("kind", KINDS)
def test_first_logged_loss_equals_the_float64_loss(kind, tmp_path):
    trainer = KINDS[kind](tmp_path, max_steps=1)
    batch = dict(next(iter(trainer.get_train_dataloader())))
    trainer.model.train()
    expected = oracle.causal_loss(trainer.model, batch).item()
    activate(trainer)
    trainer.train()
    assert training.losses(trainer)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["full", "lora", "packed", "moe"])
def test_weights_equal_those_of_trls_own_dft(kind, tmp_path):
    make = {**KINDS, "moe": moe}[kind]
    theirs = make(tmp_path, loss_type="dft")
    theirs.train()
    ours = run(make(tmp_path))
    assert tiny.max_gap(training.trained(theirs.model), ours) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_four_micro_batches_of_one_equal_one_batch_of_four(kind, tmp_path):
    whole = run(KINDS[kind](tmp_path))
    split = run(KINDS[kind](tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4))
    assert tiny.max_gap(whole, split) < 1e-6


@pytest.mark.parametrize("kind", ["full", "moe"])
def test_trls_metrics_are_kept(kind, tmp_path):
    make = {"full": full, "moe": moe}[kind]
    theirs, ours = make(tmp_path, loss_type="dft"), make(tmp_path)
    theirs.train()
    run(ours)
    for stock, logged in zip(training.train_logs(theirs), training.train_logs(ours), strict=True):
        kept = stock.keys() - {"train_runtime", "step"}
        assert kept <= logged.keys()
        for key in kept - {"epoch"}:
            assert logged[key] == pytest.approx(stock[key], rel=1e-4, abs=1e-6), key


def test_evaluation_keeps_trls_metrics_and_adds_ours(tmp_path):
    theirs, ours = full(tmp_path, loss_type="dft"), full(tmp_path)
    activate(ours)
    stock, logged = theirs.evaluate(), ours.evaluate()
    for key in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy"):
        assert logged[key] == pytest.approx(stock[key], rel=1e-5)
    assert {"eval_dft/nll", "eval_dft/perplexity"} <= logged.keys()


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    straight = run(lora(tmp_path / "a", max_steps=4))
    run(lora(tmp_path / "b", max_steps=4, save_strategy="steps", save_steps=2))
    resumed = lora(tmp_path / "b", max_steps=4)
    activate(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert tiny.max_gap(straight, training.trained(resumed.model)) < 1e-7


def test_if_both_are_set_ours_wins_and_p_is_applied_once(tmp_path, capsys):
    both, one = full(tmp_path, loss_type="dft"), full(tmp_path)
    assert tiny.max_gap(run(both), run(one)) == 0
    assert "replaces loss_type: dft" in capsys.readouterr().err


def test_lora_on_the_head_is_refused_by_trl_itself(tmp_path):
    """TRL's own error comes first; the plain Trainer trains it."""
    config = training.lora_config(target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match="PEFT adapter to `lm_head` is not supported"):
        training.sft_trainer(tmp_path, peft_config=config)


def test_label_smoothing_is_refused(tmp_path):
    with pytest.warns(FutureWarning, match="label_smoothing_factor"):
        trainer = full(tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ConflictError, match=r"label_smoothing_factor is 0.1.*Set it to 0\."):
        activate(trainer)


def test_a_batch_without_targets_trains_a_zero(tmp_path):
    trainer = full(tmp_path, per_device_train_batch_size=1, max_steps=1)
    activate(trainer)
    ids = torch.tensor([[5, 6, 7]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.full_like(ids, -100)}
    trainer.model.train()
    loss = trainer.training_step(trainer.model, batch, num_items_in_batch=torch.tensor(3))
    assert loss.item() == 0
    assert all(float(p.grad.abs().max()) == 0 for p in trainer.model.parameters())
