"""Classes that compute their loss by themselves: what they score is found out on the caller's first batch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from support import attached, oracle, tiny
from support.own_losses import Own, WithoutPadding
from torch import nn
from transformers import DynamicCache, LlamaConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from dft_plugin import attach
from dft_plugin.errors import UnsupportedModelError
from dft_plugin.hf import untouched
from dft_plugin.hf.own_loss import check_own_loss


class MeanOfRows(Own):
    def score(self, logits, labels, attention_mask):
        rows = zip(logits[:, :-1], labels[:, 1:], strict=True)
        losses = [nn.functional.cross_entropy(*row) for row in rows if (row[1] != -100).any()]
        return torch.stack(losses).mean()


class Smoothed(Own):
    def score(self, logits, labels, attention_mask):
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.1)


class Silent(Own):
    def score(self, logits, labels, attention_mask):
        return None


class PerToken(Own):
    def score(self, logits, labels, attention_mask):
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")


class Longer(Own):
    """Puts three positions of its own before the tokens."""

    def forward(self, input_ids=None, labels=None, **kwargs):
        input_ids = torch.cat([input_ids[:, :1].expand(-1, 3), input_ids], 1)
        if labels is not None:
            labels = torch.cat([torch.full_like(labels[:, :1], -100).expand(-1, 3), labels], 1)
        return super().forward(input_ids=input_ids, labels=labels)


def make(cls, **changes):
    torch.manual_seed(0)
    return attached.noisy(cls(LlamaConfig(**{**tiny.SHAPE, **changes}))).train()


def labelled_padding():
    """A padded row whose padding carries labels, as where the labels are copied from the tokens."""
    batch = tiny.batch()
    batch["labels"][-1, -4:] = batch["input_ids"][-1, -4:]
    return batch


def left_out(batch):
    return {**batch, "labels": batch["labels"].masked_fill(batch["attention_mask"] == 0, -100)}


def without(batch, name):
    return {key: value for key, value in batch.items() if key != name}


def full(batch):
    return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}


FIRST = {
    "padded and labelled there": labelled_padding(),
    "padded": tiny.batch(),
    "padded on the left": {**tiny.batch(), "attention_mask": tiny.batch()["attention_mask"].flip(1)},
    "not padded": full(tiny.batch()),
    "no mask": without(tiny.batch(), "attention_mask"),
    "nothing scored": {**tiny.batch(), "labels": torch.full_like(tiny.batch()["labels"], -100)},
    "one row": {key: value[-1:] for key, value in tiny.batch().items()},
}


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("kernel", ["auto", "logits"])
@pytest.mark.parametrize(("cls", "scored"), [(WithoutPadding, left_out), (Own, lambda batch: batch)])
def test_padding_is_scored_or_left_out_as_the_class_does(cls, scored, kernel, first):
    model, batch = make(cls), labelled_padding()
    theirs = attached.truth(model, scored(batch))
    stock = float(model(**batch).loss.detach())
    assert stock == pytest.approx(float(oracle.causal_loss(model, scored(batch), oracle.nll).detach()), rel=1e-5)
    attach(model, {"name": "dft", "kernel": kernel})
    model(**FIRST[first])
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)


@pytest.mark.parametrize("cls", [WithoutPadding, Own])
def test_one_padded_position_among_many_decides_in_bfloat16(cls):
    model = make(cls).bfloat16()
    batch = full(tiny.batch(rows=8, length=120))
    batch["attention_mask"][3, -1] = 0
    found = check_own_loss(model, model.forward, without(batch, "labels"), batch["labels"])
    assert found.leaves_out_padding == (cls is WithoutPadding)


@pytest.mark.parametrize("kernel", ["auto", "logits"])
def test_labels_that_a_hook_writes_into_before_the_loss_are_those_that_are_scored(kernel):
    model, batch, now = make(WithoutPadding), labelled_padding(), {}
    written = batch["labels"].clone()
    written[0, 8:12] = -100
    theirs = attached.truth(model, left_out({**batch, "labels": written}))

    def write(*_):
        now["labels"][0, 8:12] = -100

    model.model.layers[1].register_forward_hook(write)
    attach(model, {"name": "dft", "kernel": kernel})
    for _ in range(2):
        now["labels"] = batch["labels"].clone()
        attached.assert_same(attached.backward(model, {**batch, "labels": now["labels"]}), theirs)


OTHERS = {
    MeanOfRows: r"MeanOfRows computes a loss of its own that is not the likelihood of the next token \(it gives ",
    Smoothed: r"Smoothed computes a loss of its own that is not the likelihood",
    Silent: r"it is not known what Silent is trained on: it computes its loss by itself, and it returns no loss for "
    r"labels\. Train it without `loss:`, or score its logits in a loop of your own with dft_plugin\.token_loss\.",
    PerToken: r"not known what PerToken is trained on: .* its loss is not one number",
    Longer: r"not known what Longer is trained on: .* logits of shape \(3, 23, 128\) for labels of shape \(3, 20\)",
}


@pytest.mark.parametrize("cls", OTHERS)
@pytest.mark.parametrize("kernel", ["auto", "logits"])
def test_another_loss_and_one_that_is_not_known_are_refused_every_time(cls, kernel):
    model = make(cls)
    attach(model, {"name": "dft", "kernel": kernel})
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=OTHERS[cls]):
            model(**tiny.batch())


def test_labels_that_are_no_rows_of_tokens_are_refused():
    model = make(Own)
    with pytest.raises(UnsupportedModelError, match=r"labels of shape \(3,\) are not rows of tokens"):
        check_own_loss(model, model.forward, {}, torch.zeros(3, dtype=torch.long))


class Careful(Own):
    """Needs an input that no other class has, and says how often it runs and how many logits it makes."""

    def __init__(self, config):
        super().__init__(config)
        self.norm = nn.BatchNorm1d(config.hidden_size)
        self.seen = []

    def forward(self, input_ids=None, pictures=None, past_key_values=None, labels=None, **kwargs):
        np.random.rand(3)
        random.random()
        embedded = self.model.embed_tokens(input_ids) + nn.functional.dropout(pictures, 0.3, self.training)
        embedded = self.norm(embedded.transpose(1, 2)).transpose(1, 2)
        pictures.zero_()
        hidden = self.model(inputs_embeds=embedded, past_key_values=past_key_values).last_hidden_state
        logits = self.lm_head(hidden)
        self.seen.append((labels is not None, logits.shape[:-1].numel()))
        loss = None if labels is None else self.score(logits, labels, None)
        return CausalLMOutputWithPast(loss=loss, logits=logits)


class Counted(Own):
    passes = 0

    def forward(self, *args, **kwargs):
        self.passes += 1
        return super().forward(*args, **kwargs)


def pictures(batch):
    prefix = torch.randn(1, 2, 3, 8, requires_grad=True)
    cache = DynamicCache()
    for layer in range(2):
        cache.update(prefix.expand(3, -1, -1, -1) * 2, prefix.expand(3, -1, -1, -1) * 3, layer)
    shape = (*batch["input_ids"].shape, 32)
    return {"input_ids": batch["input_ids"], "pictures": torch.randn(shape), "past_key_values": cache}


@pytest.mark.parametrize("scored", [True, False])
def test_the_check_takes_three_passes_of_all_inputs_and_few_logits_of_ours(scored):
    model, batch = make(Careful), tiny.batch()
    labels = batch["labels"] if scored else torch.full_like(batch["labels"], -100)
    check_own_loss(model, model.forward, pictures(batch), labels)
    assert model.seen == [(False, 16), (True, 60), (True, 60)], "16 rows, on every rank; and what the class makes"


def test_the_check_is_done_once_where_batches_have_masks_that_pad_nothing():
    model, batch = make(Counted), full(tiny.batch())
    attach(model)
    model(**batch)
    passes = model.passes
    for _ in range(3):
        model(**batch)
    model(**tiny.batch())
    assert model.passes - passes == 4


def test_the_check_leaves_nothing_behind():
    model, batch = make(Careful), tiny.batch()
    inputs = pictures(batch)
    given, cache = inputs["pictures"].clone(), inputs["past_key_values"]
    keys = [layer.keys for layer in cache.layers] if hasattr(cache, "layers") else cache.key_cache
    mean, count = model.norm.running_mean.clone(), model.norm.num_batches_tracked.clone()
    random.seed(4)
    np.random.seed(4)
    torch.manual_seed(4)
    expected = random.random(), np.random.rand(), torch.rand(())
    random.seed(4)
    np.random.seed(4)
    torch.manual_seed(4)
    check_own_loss(model, model.forward, inputs, batch["labels"])
    assert (random.random(), np.random.rand(), torch.rand(())) == expected
    assert torch.equal(inputs["pictures"], given)
    assert cache.get_seq_length() == 3
    assert (cache.layers[0].keys if hasattr(cache, "layers") else cache.key_cache[0]) is keys[0]
    assert torch.equal(model.norm.running_mean, mean)
    assert torch.equal(model.norm.num_batches_tracked, count)
    assert model.norm.training


@pytest.mark.parametrize(("kind", "which"), [("xpu", (torch.device("xpu", 0),)), ("mps", ())])
def test_the_random_state_of_any_kind_of_device_is_kept(kind, which, monkeypatch):
    states, module = [torch.tensor(1)], getattr(torch, kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(module, "is_initialized", lambda: True, raising=False)
    monkeypatch.setattr(module, "get_rng_state", lambda *args: states[-1] if args == which else None)
    monkeypatch.setattr(module, "set_rng_state", lambda state, *args: states.append((state, args)))
    with untouched.untouched(nn.Linear(1, 1)):
        states.append(torch.tensor(2))
    assert states[-1] == (torch.tensor(1), which)


def test_a_build_for_an_accelerator_runs_without_one(monkeypatch):
    # What torch of PyPI says on a machine that has no GPU; to ask for the current device would fail.
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with untouched.untouched(nn.Linear(1, 1)):
        pass
