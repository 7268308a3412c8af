"""The first batch is a batch like any other: looking at the model leaves nothing behind."""

from __future__ import annotations

import gc

import peft
import pytest
import torch
from support import attached, tiny
from torch import nn
from transformers import DynamicCache, LlamaForCausalLM

from dft_plugin import attach
from dft_plugin.errors import UnsupportedModelError


def prefix_tuned():
    torch.manual_seed(0)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    return attached.noisy(peft.get_peft_model(tiny.llama().train(), config), 0.3)


def same_three_times(model, batch, theirs, loss="dft"):
    attachment = attach(model, loss)
    for _ in range(3):
        attached.assert_same(attached.backward(model, batch), theirs)
    return attachment


@pytest.mark.parametrize("loss", ["dft", {"name": "dft", "kernel": "logits"}])
def test_prefix_tuning_whose_cache_is_the_callers(loss):
    batch = tiny.batch()
    same_three_times(prefix_tuned(), batch, attached.truth(prefix_tuned(), batch), loss)


class Masked(LlamaForCausalLM):
    """Its logits cannot be left out, so that the first batch needs two passes."""

    def forward(self, *args, labels=None, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.masked_fill(torch.arange(tiny.VOCAB) == 5, -30.0)
        if labels is not None:
            output.loss = self.loss_function(output.logits, labels, self.config.vocab_size)
        return output


def masked(seed=0, **changes):
    torch.manual_seed(seed)
    return Masked(tiny.llama(**changes).config).train()


def test_a_second_pass_finds_the_callers_cache_as_it_was():
    model, batch = masked(), tiny.batch()
    ids = batch["input_ids"]
    with torch.no_grad():
        past = model.model(ids[:, :5], use_cache=True).past_key_values
    rest = {"input_ids": ids[:, 5:], "labels": batch["labels"][:, 5:], "attention_mask": torch.ones_like(ids)}
    expected = attached.truth(model, {**rest, "past_key_values": copy_of(past)})
    attach(model)
    given = copy_of(past)
    loss, grads = attached.backward(model, {**rest, "past_key_values": given})
    attached.assert_same((loss, grads), expected)
    assert given.get_seq_length() == ids.shape[1], "the caller's cache holds the pass once"


def copy_of(cache):
    copied = DynamicCache()
    for index, layer in enumerate(cache.layers):
        copied.update(layer.keys.clone(), layer.values.clone(), index)
    return copied


class Counting(nn.BatchNorm1d):
    """Keeps a running mean of what passes through, as vision towers do."""

    def forward(self, hidden_BSD):
        return super().forward(hidden_BSD.flatten(0, 1)).view_as(hidden_BSD)


@pytest.mark.parametrize("make", [lambda: tiny.llama().train(), masked], ids=["one pass", "two passes"])
def test_buffers_see_each_batch_once(make):
    batch = tiny.batch()
    stock, ours = make(), make()
    for model in (stock, ours):
        model.model.layers[0].input_layernorm = Counting(32, momentum=0.5)
    attach(ours)
    for model in (stock, ours):
        model(**batch)
    expected, seen = stock.model.layers[0].input_layernorm, ours.model.layers[0].input_layernorm
    assert int(seen.num_batches_tracked) == 1
    assert torch.equal(seen.running_mean, expected.running_mean)


@pytest.mark.parametrize("make", [tiny.llama, masked], ids=["one pass", "two passes"])
def test_the_random_state_is_that_of_one_pass(make):
    batch = tiny.batch()
    stock, ours = make(attention_dropout=0.3).train(), make(attention_dropout=0.3).train()
    attach(ours, "nll")
    for model in (stock, ours):
        torch.manual_seed(3)
        model(**batch)
        model.state_after = torch.get_rng_state()
    assert torch.equal(stock.state_after, ours.state_after)


def test_the_first_batch_is_one_forward_pass():
    model, batch = tiny.llama().train(), tiny.batch()
    passes = []
    model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    attach(model)
    model(**batch)
    model(**batch)
    assert len(passes) == 2


def test_nothing_of_the_first_batch_stays_in_memory():
    # A head that is called, which kept the whole batch's hidden states once.
    model, batch = tiny.llama().train(), tiny.batch(rows=5, length=33)
    linear = model.lm_head.forward
    model.lm_head.forward = lambda hidden: 2.0 * linear(hidden)
    attachment = attach(model)
    attached.backward(model, batch)
    model.zero_grad(set_to_none=True)
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    kept = [tuple(tensor.shape) for tensor in tensors if 33 in tensor.shape or tensor.shape[-1:] == (33 * 5,)]
    assert [shape for shape in kept if shape != (5, 33)] == []
    assert attachment.route.path == "lean"


def test_a_vocabulary_that_is_resized_later_is_noticed():
    model, batch = tiny.llama().train(), tiny.batch()
    attachment = attach(model)
    model(**batch)
    model.resize_token_embeddings(tiny.VOCAB + 9)
    batch["labels"][0, -1] = batch["input_ids"][0, -1] = tiny.VOCAB + 8
    expected = attached.truth(model, batch)
    attached.assert_same(attached.backward(model, batch), expected)
    assert attachment.route.vocab_size == tiny.VOCAB + 9
    with pytest.raises(ValueError, match=f"allowed: 0 to {tiny.VOCAB + 8}"):
        model(**{**batch, "labels": torch.full_like(batch["labels"], tiny.VOCAB + 9)})


def test_a_head_that_is_replaced_later_is_looked_at_again():
    model, batch = tiny.llama().train(), tiny.batch()
    attachment = attach(model)
    model(**batch)
    model.lm_head = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, tiny.VOCAB))
    attached.assert_same(attached.backward(model, batch), attached.truth(unattached(model), batch))
    assert "Sequential" in attachment.route.why_not_lean


def unattached(model):
    plain = LlamaForCausalLM(model.config).train()
    plain.lm_head = model.lm_head
    plain.load_state_dict(model.state_dict())
    return plain


def test_evaluation_may_come_first():
    batch = tiny.batch()
    for make in (tiny.llama, tiny.mixtral, masked):
        model, fresh = make().eval(), make().train()
        attach(model)
        attach(fresh)
        with torch.no_grad():
            model(**batch)
        attached.assert_same(attached.backward(model.train(), batch), attached.backward(fresh, batch))


def test_a_first_batch_without_targets():
    model, batch = tiny.llama().train(), tiny.batch()
    nothing = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    theirs = attached.truth(model, batch)
    attach(model)
    assert attached.backward(model, nothing)[0] == 0.0
    attached.assert_same(attached.backward(model, batch), theirs)


def test_a_class_that_asks_for_two_losses_is_refused_on_every_batch():
    class Twice(LlamaForCausalLM):
        def forward(self, *args, labels=None, **kwargs):
            output = super().forward(*args, labels=labels, **kwargs)
            if labels is not None:
                output.loss = output.loss + self.loss_function(output.logits, labels, self.config.vocab_size)
            return output

    model = Twice(tiny.llama().config).train()
    attach(model)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="asks for 2 losses"):
            model(**tiny.batch())
