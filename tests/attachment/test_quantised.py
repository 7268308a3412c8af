"""4-bit and 8-bit layers of bitsandbytes; the truth is the model's own logits in the same mode."""

from __future__ import annotations

import warnings

import pytest
import torch
from support import attached, tiny
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from dft_plugin import attach

bitsandbytes = pytest.importorskip("bitsandbytes")
peft = pytest.importorskip("peft")

# bitsandbytes quantises blocks of 64 numbers.
WIDE = {"hidden_size": 64, "intermediate_size": 128}


def quantised(tmp_path, skip=None, **config):
    tiny.llama(**WIDE).save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=skip, **config
    )
    with warnings.catch_warnings():
        # Loading warns of what it finds missing on a machine without a GPU.
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=settings, device_map={"": "cpu"}, dtype=torch.float32
        ).train()


def with_lora(model, **config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        adapted = peft.get_peft_model(
            model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, **{"target_modules": ["q_proj", "v_proj"], **config})
        )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return adapted.train()


def compare(model, batch):
    theirs = attached.truth(model, batch)
    attachment = attach(model)
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs, loss_gap=1e-5, gradient_gap=1e-4)
    return attachment


@pytest.mark.parametrize("double", [False, True])
def test_qlora_is_lean_and_equal(tmp_path, double):
    model = quantised(tmp_path, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
    assert isinstance(model.model.layers[0].mlp.up_proj, bitsandbytes.nn.Linear4bit)
    assert type(model.lm_head) is nn.Linear
    attachment = compare(with_lora(model), tiny.batch())
    assert attachment.route.why_not_lean is None


@pytest.mark.parametrize("config", [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_qlora_with_a_trained_head_is_lean_and_equal(tmp_path, config):
    attachment = compare(with_lora(quantised(tmp_path), **config), tiny.batch())
    assert attachment.route.why_not_lean is None


def four_bit_head(tmp_path):
    # With an empty list of exceptions, transformers quantises the head as well.
    model = quantised(tmp_path, skip=["not_a_module"])
    assert isinstance(model.lm_head, bitsandbytes.nn.Linear4bit)
    return model


def test_a_4_bit_head_is_called(tmp_path):
    attachment = compare(with_lora(four_bit_head(tmp_path)), tiny.batch())
    assert attachment.route.path == "lean"
    assert attachment.route.why_not_lean == "the head is a Linear4bit with a forward of its own"


def test_lora_on_a_4_bit_head_is_called(tmp_path):
    model = with_lora(four_bit_head(tmp_path), target_modules=["q_proj", "lm_head"])
    attachment = compare(model, tiny.batch())
    assert attachment.route.path == "lean"
    assert attachment.route.why_not_lean is not None
