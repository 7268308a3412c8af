"""PEFT's other wrappers: mixed adapters and learned prompts around a causal LM."""

from __future__ import annotations

import warnings

import pytest
import torch
from support import attached, tiny

from dft_plugin import attach
from dft_plugin.errors import UnsupportedModelError

peft = pytest.importorskip("peft")


def wrapped(config, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(tiny.llama().train(), config, **how)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.train()


def mixed(head=False):
    targets = ["q_proj", "lm_head"] if head else ["q_proj"]
    model = wrapped(peft.LoraConfig(r=4, target_modules=targets), mixed=True)
    model.add_adapter("second", peft.LoHaConfig(r=4, target_modules=["v_proj"]))
    model.set_adapter(["default", "second"])
    torch.manual_seed(2)
    return attached.noisy(model, 0.1)


@pytest.mark.parametrize("head", [False, True])
def test_mixed_adapters_are_trained(head):
    model, batch = mixed(head), tiny.batch()
    theirs = attached.truth(model, batch)
    attach(model)
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)
    assert {"default", "second"} <= {part for name in theirs[1] for part in name.split(".")}


COMMON = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
PROMPTS = {
    "prompt tuning": lambda: peft.PromptTuningConfig(**COMMON),
    "p-tuning": lambda: peft.PromptEncoderConfig(**COMMON, encoder_hidden_size=16),
    "prefix tuning": lambda: peft.PrefixTuningConfig(**COMMON),
    "multitask prompt tuning": lambda: peft.MultitaskPromptTuningConfig(**COMMON, num_tasks=2),
    "cartridge": lambda: peft.CartridgeConfig(**COMMON),
}
IN_THE_INPUT = ("prompt tuning", "p-tuning", "multitask prompt tuning")


def prompt_batch(kind):
    batch = tiny.batch()
    if kind.startswith("multitask"):
        batch["task_ids"] = torch.tensor([0, 1, 0])
    return batch


def prompt_truth(model, kind, batch):
    """Virtual tokens are scored by nobody: where they stand in the input, the labels begin behind them."""
    padded = dict(batch)
    if kind in IN_THE_INPUT:
        unscored = torch.full((len(batch["labels"]), 4), -100)
        padded["labels"] = torch.cat([unscored, batch["labels"]], 1)
    return attached.truth(model, padded)


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("kernel", ["auto", "logits"])
def test_learned_prompts_are_trained(kind, kernel):
    if kind == "cartridge" and not hasattr(peft, "CartridgeConfig"):
        pytest.skip("this release of PEFT has no cartridges")
    model, batch = wrapped(PROMPTS[kind]()), prompt_batch(kind)
    theirs = prompt_truth(model, kind, batch)
    attach(model, {"name": "dft", "kernel": kernel})
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)


def cpt():
    ids = {"cpt_token_ids": [5, 6, 7, 8], "cpt_mask": [1] * 4, "cpt_tokens_type_mask": [1, 2, 3, 4]}
    return wrapped(peft.CPTConfig(**COMMON, **ids))


def test_a_prompt_with_a_loss_of_its_own_is_refused_by_name():
    model = cpt()
    with pytest.raises(
        UnsupportedModelError,
        match=r"^CPTConfig makes a loss of its own from the model's logits, and drops the model's\. Train it without "
        r"`loss:`, or take another way to train a prompt, PromptTuningConfig for one\.$",
    ):
        attach(model)
    assert "forward" not in model.get_base_model().__dict__
