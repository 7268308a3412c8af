"""Forwards that do something of their own to logits or losses: found out on the first batch."""

from __future__ import annotations

import logging

import pytest
import torch
from support import attached, tiny
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeCausalLMOutputWithPast

from dft_plugin import attach
from dft_plugin.errors import UnsupportedModelError


class Tampered(LlamaForCausalLM):
    """Does something to its logits, as `tamper` says, and then asks for a loss as every class does."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits = self.tamper(self.lm_head(hidden))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits)


def mask_a_column(logits):
    return torch.cat([logits[..., :9], logits[..., 9:10] - 1e4, logits[..., 10:]], -1)


def mask_a_column_in_place(logits):
    logits[..., 9] = -1e4
    return logits


def scale_in_place(logits):
    logits *= 0.25
    return logits


def add_a_bias(logits):
    return logits + torch.linspace(-2, 2, logits.shape[-1])


def cap_otherwise(logits):
    return 3.0 * logits / (3.0 + logits.abs())


def drop_the_last_columns(logits):
    return logits[..., :-8]


def scale_by_position(logits):
    return logits * torch.linspace(0.5, 1.5, logits.shape[1])[None, :, None]


def normalise(logits):
    return logits.log_softmax(-1) * 0.5


def tampered(tamper):
    torch.manual_seed(0)
    model = attached.noisy(Tampered(LlamaConfig(**tiny.SHAPE)))
    model.tamper = tamper
    return model.train()


def batch():
    made = tiny.batch()
    made["labels"][made["labels"] >= tiny.VOCAB - 8] = -100
    made["labels"][made["labels"] == 9] = -100
    return made


ODD = [
    mask_a_column,
    mask_a_column_in_place,
    add_a_bias,
    cap_otherwise,
    drop_the_last_columns,
    scale_by_position,
    normalise,
]


@pytest.mark.parametrize("tamper", ODD)
def test_odd_logits_are_scored_as_they_are_and_said_once(tamper, caplog):
    model = tampered(tamper)
    theirs = attached.truth(model, batch())
    attachment = attach(model)
    with caplog.at_level(logging.WARNING, "dft_plugin"):
        for _ in range(3):
            attached.assert_same(attached.backward(model, batch()), theirs)
    assert attachment.route.path == "logits"
    (record,) = caplog.records
    assert record.message.startswith("dft: Tampered: scoring the model's logits, since the model ")
    assert attachment.route.why_not_lean in record.message


@pytest.mark.parametrize("tamper", ODD)
def test_odd_logits_are_refused_where_the_kernel_was_asked_for_by_name(tamper):
    model = tampered(tamper)
    attach(model, {"name": "dft", "kernel": "chunked"})
    with pytest.raises(
        UnsupportedModelError, match=r"a kernel was asked for by name, but the model .* Set `kernel: auto`"
    ):
        model(**batch())


@pytest.mark.parametrize("tamper", [scale_in_place, lambda logits: logits.float() * -2.0])
def test_a_scale_is_found_out_whatever_its_name_and_however_it_is_applied(tamper):
    model = tampered(tamper)
    theirs = attached.truth(model, batch())
    attachment = attach(model)
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch()), theirs)
    assert attachment.route.path == "lean"


class FusedLlama(LlamaForCausalLM):
    """Computes its loss by itself, as Liger and Cut Cross-Entropy do: no logits, no `loss_function`."""

    fused_calls = 0

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if labels is None or not self.training:
            logits, loss = self.lm_head(hidden), None
            if labels is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
            return CausalLMOutputWithPast(loss=loss, logits=logits)
        FusedLlama.fused_calls += 1
        logits = hidden[:, :-1] @ self.lm_head.weight.T
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss)


class FusedMixtral(MixtralForCausalLM):
    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask, output_router_logits=True)
        if labels is None:
            return output
        loss = nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss = loss + self.router_aux_loss_coef * output.aux_loss
        return MoeCausalLMOutputWithPast(loss=loss, aux_loss=output.aux_loss)


def fused_llama():
    torch.manual_seed(0)
    return FusedLlama(LlamaConfig(**tiny.SHAPE)).train()


def fused_mixtral():
    torch.manual_seed(0)
    router = {"num_local_experts": 4, "router_aux_loss_coef": 0.5}
    return FusedMixtral(MixtralConfig(**tiny.SHAPE, **router)).train()


@pytest.mark.parametrize("make", [fused_llama, fused_mixtral])
@pytest.mark.parametrize("kernel", ["auto", "chunked", "logits"])
def test_a_fused_forward_is_superseded(make, kernel):
    model = make()
    theirs = attached.backward(model, tiny.batch())
    attachment = attach(model, {"name": "nll", "kernel": kernel})
    for _ in range(2):
        attached.assert_same(attached.backward(model, tiny.batch()), theirs)
    assert attachment.route.path == ("logits" if kernel == "logits" else "lean")


def test_the_dft_loss_of_a_fused_forward_is_ours_and_not_its_own():
    model = fused_llama()
    theirs = attached.truth(model, tiny.batch())
    attach(model)
    attached.assert_same(attached.backward(model, tiny.batch()), theirs)
    FusedLlama.fused_calls = 0
    attached.assert_same(attached.backward(model, tiny.batch()), theirs)
    assert FusedLlama.fused_calls == 0, "the fused loss is no longer computed"


def test_a_fused_forward_on_the_instance_is_superseded_too():
    model = tiny.llama().train()
    theirs = attached.truth(model, tiny.batch())
    model.forward = FusedLlama.forward.__get__(model)
    attach(model)
    attached.assert_same(attached.backward(model, tiny.batch()), theirs)


class Unshifted(LlamaForCausalLM):
    """Takes labels that are aligned already, as the decoders of encoder-decoders do."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        logits = self.lm_head(self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.view(-1, self.config.vocab_size), labels.view(-1))
        return CausalLMOutputWithPast(loss=loss, logits=logits)


@pytest.mark.parametrize("kernel", ["auto", "logits"])
def test_a_loss_of_its_own_that_is_another_one_is_refused_every_time(kernel):
    model = Unshifted(LlamaConfig(**tiny.SHAPE)).train()
    attach(model, {"name": "dft", "kernel": kernel})
    for _ in range(2):
        with pytest.raises(
            UnsupportedModelError,
            match=r"Unshifted computes a loss of its own that is not the likelihood of the next token .* without",
        ):
            model(**tiny.batch())


class TwoLosses(LlamaForCausalLM):
    def forward(self, input_ids=None, labels=None, **kwargs):
        output = super().forward(input_ids=input_ids, labels=labels)
        if labels is not None:
            output.loss = output.loss + super().forward(input_ids=input_ids, labels=labels).loss
        return output


def test_a_forward_that_asks_for_two_losses_is_refused():
    model = TwoLosses(LlamaConfig(**tiny.SHAPE)).train()
    attach(model, {"name": "dft", "kernel": "logits"})
    with pytest.raises(
        UnsupportedModelError, match="TwoLosses asks for 2 losses in one forward pass; only one can be replaced"
    ):
        model(**tiny.batch())


def test_an_error_of_the_model_itself_reaches_the_caller():
    model, made = tiny.llama().train(), tiny.batch()
    theirs = attached.truth(model, made)
    attach(model)
    broken = {**made, "input_ids": made["input_ids"] + tiny.VOCAB}
    with pytest.raises(IndexError, match="index out of range"):
        model(**broken)
    attached.assert_same(attached.backward(model, made), theirs)
