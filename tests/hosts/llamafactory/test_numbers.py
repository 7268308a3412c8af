"""LLaMA-Factory with the loss active: the numbers of a step, in every way that it trains."""

from __future__ import annotations

import pytest
from support import tiny

pytest.importorskip("llamafactory")

from support import factory, training

pytestmark = pytest.mark.host

LORA = factory.LORA
QUANTISED = {**LORA, "quantization_method": "bnb"}
KINDS = {
    "full": {},
    "tied": {"model": "tied"},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "lora": LORA,
    "dora": {**LORA, "use_dora": True},
    "rslora": {**LORA, "use_rslora": True},
    "pissa": {**LORA, "pissa_init": True},
    "qlora-4bit": {**QUANTISED, "quantization_bit": 4},
    "qlora-8bit": {**QUANTISED, "quantization_bit": 8},
    "packing": {"packing": True},
    "neat_packing": {"neat_packing": True},
    "lora-neat_packing": {**LORA, "neat_packing": True},
    "train_on_prompt": {"train_on_prompt": True},
    "multi-turn": {"dataset": "chat"},
    "mask_history": {"dataset": "chat", "mask_history": True},
    "no-checkpointing": {"disable_gradient_checkpointing": True},
}
"""Changes of the config."""

if factory.OLD:
    # It refuses them beside the transformers that it is tested with.
    KINDS = {kind: changes for kind, changes in KINDS.items() if "neat_packing" not in changes}

UPSTREAM_IS_WRONG = {"train_on_prompt"}
"""Where LLaMA-Factory's own DFT counts targets that no position predicts."""

EIGHT_BIT = {"qlora-8bit"}
"""LLM.int8 quantises activations row by row in the forward and the gradient as a whole: batches differ by design."""


@pytest.mark.parametrize("kind", KINDS)
def test_first_logged_loss_equals_the_float64_loss(kind, home, tmp_path):
    run = factory.train(factory.arguments(home, tmp_path, **KINDS[kind], max_steps=1), "dft")
    assert run.losses[0] == pytest.approx(run.expected, rel=1e-6, abs=factory.ROUNDED)
    assert run.logs[0]["dft/loss"] == pytest.approx(run.expected, rel=1e-6)
    assert run.moved > 1e-5, "nothing was trained"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in EIGHT_BIT])
def test_four_micro_batches_of_one_equal_one_batch_of_four(kind, home, tmp_path):
    config = factory.arguments(home, tmp_path, **KINDS[kind])
    whole = factory.train(config, "dft")
    split = factory.train({**config, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}, "dft")
    assert len(split.batches) == 4
    assert tiny.max_gap(whole.after, split.after) < 1e-6
    assert whole.losses == pytest.approx(split.losses, rel=1e-5)
    assert whole.moved > 1e-4, "nothing was trained"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in UPSTREAM_IS_WRONG])
def test_weights_equal_those_of_use_dft_loss(kind, home, tmp_path):
    config = factory.arguments(
        home, tmp_path, **KINDS[kind], per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    ours = factory.train(config, "dft")
    theirs = factory.train({**config, "use_dft_loss": True})
    assert tiny.max_gap(ours.after, theirs.after) < 1e-6
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)


def test_the_label_of_position_0_is_never_counted(home, tmp_path):
    """No position predicts it. LLaMA-Factory's own DFT divides by it as well, once for each row."""
    config = factory.arguments(home, tmp_path, train_on_prompt=True, max_steps=1)
    theirs, ours = factory.train({**config, "use_dft_loss": True}), factory.train(config, "dft")
    (batch,) = theirs.batches
    targets = int((batch["labels"][:, 1:] != -100).sum())
    assert int((batch["labels"][:, 0] != -100).sum()) == 4, "the data do not show it"
    assert ours.logs[0]["dft/tokens"] == targets
    assert ours.losses[0] == pytest.approx(theirs.expected, rel=1e-6, abs=factory.ROUNDED)
    diluted = theirs.expected * targets / (targets + 4)
    assert theirs.losses[0] == pytest.approx(diluted, rel=1e-5, abs=factory.ROUNDED)
    assert theirs.expected - diluted > 10 * factory.ROUNDED


def without_targets(trainer):
    """Mask the answers of some rows, as a truncated or filtered data set may."""

    def mask(row, index):
        return {**row, "labels": [-100] * len(row["labels"])} if index % 3 == 0 else row

    trainer.train_dataset = trainer.train_dataset.map(mask, with_indices=True, load_from_cache_file=False)


def test_a_micro_batch_without_targets_adds_nothing(home, tmp_path):
    config = factory.arguments(home, tmp_path)
    split = {**config, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    whole, parts = factory.train(config, "dft", without_targets), factory.train(split, "dft", without_targets)
    assert any(bool((batch["labels"] == -100).all()) for batch in parts.batches)
    assert tiny.max_gap(whole.after, parts.after) < 1e-6
    with pytest.raises(RuntimeError, match="does not require grad"):
        factory.train({**split, "use_dft_loss": True}, None, without_targets)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_alpha_zero_trains_as_stock_cross_entropy_does(kind, home, tmp_path):
    config = factory.arguments(home, tmp_path, **KINDS[kind], max_steps=1)
    stock, ours = factory.train(config), factory.train(config, {"name": "dft", "alpha": 0})
    assert "dft/loss" in ours.logs[0]
    assert tiny.max_gap(stock.after, ours.after) < 1e-6
    assert stock.losses == pytest.approx(ours.losses, rel=1e-5)


def test_the_router_loss_is_trained_as_the_model_does(home, tmp_path):
    """Upstream's DFT drops it. With checkpointing (LLaMA-Factory's default) it has no gradient in any loss."""
    config = factory.arguments(
        home, tmp_path, "moe", disable_gradient_checkpointing=True, max_steps=1, learning_rate=1e-3
    )
    stock = factory.train({**config, "moe_aux_loss_coef": 0.5})
    kept = factory.train({**config, "moe_aux_loss_coef": 0.5}, "nll")
    without = factory.train({**config, "moe_aux_loss_coef": 1e-9}, "nll")
    assert tiny.max_gap(stock.after, kept.after) < 1e-6
    assert stock.losses == pytest.approx(kept.losses, rel=1e-5)
    assert tiny.max_gap(kept.after, without.after) > 1e-3, "the router's loss does not show in this test"


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind, home, tmp_path):
    config = factory.arguments(home, tmp_path / "a", **KINDS[kind], max_steps=4, save_strategy="steps", save_steps=2)
    straight = factory.train(config, "dft")
    resumed = factory.train({**config, "resume_from_checkpoint": str(tmp_path / "a" / "checkpoint-2")}, "dft")
    assert resumed.trainer.state.global_step == 4
    assert len(resumed.batches) == 0, "it began anew"
    assert "dft/loss" in resumed.logs[-1]
    assert tiny.max_gap(straight.after, resumed.after) < 1e-7


def test_a_head_whose_logits_are_upcast_is_trained(home, tmp_path):
    """`upcast_lmhead_output`: a forward hook on the head, which gets its output and returns it in float32."""
    tiny.llama(**factory.WIDTH).bfloat16().save_pretrained(tmp_path / "half")
    training.tokenizer().save_pretrained(tmp_path / "half")
    changes = {**LORA, "bf16": True, "upcast_lmhead_output": True, "learning_rate": 1e-2}
    run = factory.train(
        factory.arguments(tmp_path, tmp_path / "out", "half", **changes, dataset_dir=str(home / "data")), "dft"
    )
    head = run.trainer.model.get_output_embeddings()
    assert (str(head.weight.dtype), len(head._forward_hooks)) == ("torch.bfloat16", 1), "there is nothing to upcast"
    # The logits that the float64 loss is made of were rounded to bfloat16 by the head, before the hook.
    assert run.logs[0]["dft/loss"] == pytest.approx(run.expected, rel=1e-3)
    assert run.moved > 1e-5, "nothing was trained"
