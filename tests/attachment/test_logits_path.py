"""The logits path: the gradient takes the place of logits that nobody reads again, and of no others."""

from __future__ import annotations

import pytest
import torch
from support import attached, tiny
from support.counting import WatchMemory
from transformers import LlamaForCausalLM

from dft_plugin import attach

LOGITS = {"name": "dft", "kernel": "logits"}
SHAPE = {"rows": 16, "length": 64}
LOGITS_BYTES = 4 * SHAPE["rows"] * SHAPE["length"] * tiny.VOCAB


def as_large_as_the_logits(model, batch):
    """How many tensors of that size a step makes; no weight, layer or mask of the tiny model is as large."""
    with WatchMemory(LOGITS_BYTES) as seen:
        model(**batch).loss.backward()
    return len(seen.storages)


def test_a_training_step_makes_nothing_of_that_size_but_the_logits():
    model, batch = tiny.llama(num_hidden_layers=1).train(), tiny.batch(**SHAPE)
    theirs = attached.truth(model, batch)
    attach(model, LOGITS)
    attached.assert_same(attached.backward(model, batch), theirs)
    assert as_large_as_the_logits(model, batch) == 1


def test_a_hook_on_the_head_may_keep_its_logits():
    model, batch = tiny.llama(num_hidden_layers=1).train(), tiny.batch(**SHAPE)
    theirs = attached.truth(model, batch)
    stock = model(**{key: batch[key] for key in batch if key != "labels"}).logits
    attach(model, LOGITS)
    kept = []
    model.lm_head.register_forward_hook(lambda module, args, output: kept.append(output))
    attached.assert_same(attached.backward(model, batch), theirs)
    assert torch.equal(kept[0], stock)
    assert as_large_as_the_logits(model, batch) == 2  # and their gradient


@pytest.mark.parametrize("change", [{"final_logit_softcapping": 5.0}], ids=["softcap"])
def test_a_model_that_caps_its_logits_trains_alike(change):
    model = attached.build("gemma2", **change)
    batch = tiny.batch(**SHAPE)
    theirs = attached.truth(model, batch)
    attach(model, LOGITS)
    attached.assert_same(attached.backward(model, batch), theirs)


def test_logits_from_which_the_model_makes_an_auxiliary_loss_stay():
    model, batch = tiny.mixtral(output_router_logits=True).train(), tiny.batch()
    attachment = attach(model, LOGITS)
    first = attached.backward(model, batch)
    attachment.detach()
    attach(model, "dft")
    attached.assert_same(first, attached.backward(model, batch))


def test_logits_that_are_wanted_are_returned_as_they_are():
    model, batch = tiny.llama().train(), tiny.batch()
    stock = model(**batch).logits
    attachment = attach(model, LOGITS)
    with attachment.answering(want_logits=True):
        output = model(**batch)
    output.loss.backward()
    assert torch.equal(output.logits, stock)


class Keeping(LlamaForCausalLM):
    """Keeps something of its logits for later."""

    def keep(self, logits):
        self.kept = logits

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        out = super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        self.keep(out.logits)
        if labels is not None:
            out["loss"] = self.loss_function(out.logits, labels, self.config.vocab_size)
        return out


class KeepingWithoutGraph(Keeping):
    def keep(self, logits):
        self.kept = logits.detach()


class KeepingAView(Keeping):
    def keep(self, logits):
        self.kept = logits[:, -1:]


class KeepingTheBase(Keeping):
    """Returns a view of what it keeps."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        out = LlamaForCausalLM.forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        self.keep(out.logits)
        out["logits"] = out.logits.view(out.logits.shape)
        if labels is not None:
            out["loss"] = self.loss_function(out.logits, labels, self.config.vocab_size)
        return out


class KeepingInAList(Keeping):
    def keep(self, logits):
        self.__dict__.setdefault("all", []).append({"logits": logits})
        self.kept = self.all[-1]["logits"]


class ReturningTwice(Keeping):
    """Returns them in a second place, too."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out["scores"] = out.logits
        return out


@pytest.mark.parametrize(
    "kind", [Keeping, KeepingWithoutGraph, KeepingAView, KeepingTheBase, KeepingInAList, ReturningTwice]
)
def test_logits_that_the_model_keeps_stay_logits(kind):
    model, batch = kind(tiny.llama(num_hidden_layers=1).config).train(), tiny.batch(**SHAPE)
    theirs = attached.truth(model, batch)
    stock = model(**{key: batch[key] for key in batch if key != "labels"}).logits
    model.keep(stock)
    expected = model.kept.detach().clone()
    attach(model, LOGITS)
    for _ in range(2):
        output = model(**batch)
        model.zero_grad()
        output.loss.backward()
        kept = output["scores"] if kind is ReturningTwice else model.kept
        assert torch.equal(kept, expected)
        attached.assert_same((output.loss.item(), tiny.gradients(model)), theirs)
    assert output.logits is None


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "granite", "cohere"])
def test_logits_that_nobody_keeps_are_overwritten(kind):
    changes = {"final_logit_softcapping": None} if kind == "gemma2" else {}
    model, batch = attached.build(kind, num_hidden_layers=1, **changes), tiny.batch(**SHAPE)
    attachment = attach(model, LOGITS)
    spare = as_large_as_the_logits(model, batch)
    with attachment.answering(want_logits=True):
        assert as_large_as_the_logits(model, batch) == spare + 1
