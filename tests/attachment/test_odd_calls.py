"""Calls that nobody expects, of models that do odd things to their logits: as the stock model, or refused by name."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from support import attached, oracle, tiny
from transformers import LlamaForCausalLM

from dft_plugin import attach
from dft_plugin.errors import UnsupportedModelError

GAPS = (1e-6, 1e-5)


def stock(model, **batch):
    """Loss and gradients of the model's own loss."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


def assert_as_stock(model, **batch):
    theirs = stock(copy.deepcopy(model), **batch)
    attachment = attach(model, "nll")
    attached.assert_same(stock(model, **batch), theirs, *GAPS)
    return attachment


@pytest.mark.parametrize("where", ["attach", "pickled"])
def test_the_first_pass_may_be_one_of_inference_mode(where):
    model, batch = tiny.llama().train(), tiny.batch()
    theirs = stock(copy.deepcopy(model), **batch)
    attach(model, "nll")
    with torch.inference_mode():
        model(**batch)
    if where == "pickled":
        model = pickle.loads(pickle.dumps(model))
    attached.assert_same(stock(model, **batch), theirs, *GAPS)


class OwnIndex(LlamaForCausalLM):
    """Marks what is no target by 7."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, shift_labels=None, **kwargs):
        out = super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if labels is not None:
            out["loss"] = self.loss_function(
                out.logits, labels, self.config.vocab_size, ignore_index=7, shift_labels=shift_labels
            )
        return out


@pytest.mark.parametrize("shifted", [False, True])
def test_a_class_may_have_an_ignore_index_of_its_own(shifted):
    model, batch = OwnIndex(tiny.llama().config).train(), tiny.batch()
    batch["labels"] = batch["labels"].masked_fill(batch["labels"] == -100, 7)
    if shifted:
        batch["shift_labels"] = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=7)
    assert_as_stock(model, **batch)


class Graded(LlamaForCausalLM):
    """Changes what comes back through its logits, and not their values."""

    def change(self, logits):
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * 3)
        return logits

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        out = super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        out["logits"] = self.change(out.logits)
        out["loss"] = self.loss_function(out.logits, labels, self.config.vocab_size)
        return out


class Halved(Graded):
    def change(self, logits):
        return logits / 2 + (logits / 2).detach()


class Rounded(Graded):
    def change(self, logits):
        return logits + ((logits * 1e4).round() / 1e4 - logits).detach() * 0 + (logits.detach() - logits) / 4


@pytest.mark.parametrize("kind", [Graded, Halved, Rounded])
def test_what_changes_only_the_gradient_of_the_logits_is_not_lost(kind):
    attachment = assert_as_stock(kind(tiny.llama().config).train(), **tiny.batch())
    assert attachment.route.path == "logits"


@pytest.mark.parametrize("kind", [Graded, Halved, Rounded])
@pytest.mark.parametrize("train", [True, False])
def test_nor_after_a_pass_without_a_graph(kind, train):
    model, batch = kind(tiny.llama().config), tiny.batch()
    theirs = stock(copy.deepcopy(model).train(), **batch)
    attachment = attach(model, "nll")
    with torch.no_grad():
        model.train(train)(**batch)
    attached.assert_same(attached.backward(model.train(), batch), theirs, loss_gap=5e-6)
    assert attachment.route.path == "logits"


class DetachedLater(Graded):
    """Holds its logits from the second batch on."""

    calls = 0

    def change(self, logits):
        self.calls += 1
        return logits if self.calls == 1 else logits.detach() * 2


def test_logits_that_are_held_in_a_later_batch_train_nothing():
    model, batch = DetachedLater(tiny.llama().config).train(), tiny.batch()
    attach(model, "nll")
    model(**batch).loss.backward()
    assert not model(**batch).loss.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_labels_of_the_logits_that_are_kept(training):
    model, batch = tiny.llama().train(training), tiny.batch()
    kept = {**batch, "labels": batch["labels"][:, -7:], "logits_to_keep": 7}
    assert_as_stock(model, **kept)


def test_the_default_device_does_not_matter_to_the_probe():
    model, batch = tiny.llama().train(), tiny.batch()
    attachment = attach(model, "nll")
    torch.set_default_device("meta")
    try:
        model(**batch)
    finally:
        torch.set_default_device(None)
    assert attachment.route.path == "lean"


def test_labels_in_a_dtype_without_minus_100_train_no_token_too_many():
    model, batch = tiny.llama(vocab_size=256).train(), tiny.batch()
    batch["labels"] = batch["labels"].clamp(min=0)
    theirs = stock(copy.deepcopy(model), **batch)
    attach(model, "nll")
    attached.assert_same(stock(model, **{**batch, "labels": batch["labels"].to(torch.uint8)}), theirs, *GAPS)


class Weighed(LlamaForCausalLM):
    """A loss of its own, which an argument weighs."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, weights=None, **kwargs):
        out = super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if labels is not None:
            losses = torch.nn.functional.cross_entropy(
                out.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none"
            )
            factor = 1 if weights is None else weights
            out["loss"] = (losses * factor).sum() / (labels[:, 1:] != -100).sum()
        return out


def test_an_argument_that_comes_later_is_asked_about_then():
    model, batch = Weighed(tiny.llama().config).train(), tiny.batch()
    attach(model, "nll")
    model(**batch)
    model(**batch)
    with pytest.raises(Exception, match="is not the likelihood of the next token"):
        model(**batch, weights=torch.tensor(2.0))


def test_two_threads_may_ask_one_model():
    model, batch = tiny.llama().eval(), tiny.batch()
    before = dict(model.__dict__)
    attachment = attach(model, "nll")
    expected, found = model(**batch).loss.item(), []

    def ask():
        for _ in range(20):
            found.append(model(**batch).loss.item())

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [pytest.approx(expected)] * 40
    attachment.detach()
    assert model.__dict__.keys() == before.keys()


class AnsweredMeanwhile(LlamaForCausalLM):
    """Is asked without labels, by another thread, while it scores."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        if labels is not None:
            self.meanwhile()
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)

    def meanwhile(self):
        asked = threading.Thread(target=lambda: self.answers.append(self(**self.question).logits))
        asked.start()
        asked.join()


def test_a_thread_that_asks_while_another_scores_is_answered_by_the_head():
    model, batch = AnsweredMeanwhile(tiny.llama().config).train(), tiny.batch()
    model.question, model.answers = {"input_ids": batch["input_ids"][:1, :5]}, []
    expected = model(**model.question).logits
    attachment = attach(model, "nll")
    for _ in range(3):
        model(**batch)
    assert len(model.answers) == 3
    assert all(torch.equal(answer, expected) for answer in model.answers)
    assert attachment.route.path == "lean"


class AsksItself(LlamaForCausalLM):
    """Scores a second view of the batch by calling itself, as for a consistency loss."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, again=True, **kwargs):
        out = super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
        if again and labels is not None:
            out["loss"] = out.loss + self(input_ids, attention_mask, labels=labels, again=False).loss
        return out


@pytest.mark.parametrize("kernel", ["auto", "logits"])
@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_calls_itself_with_labels_is_refused_at_once(kernel, training, caplog):
    model, batch = AsksItself(tiny.llama().config).train(training), tiny.batch()
    attachment = attach(model, {"name": "nll", "kernel": kernel})
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=r"AsksItself was called with labels from inside .* Train it"):
            model(**batch)
    assert not caplog.text
    attached.assert_same(attached.backward(model, {**batch, "again": False}), attached.truth(model, batch, oracle.nll))
    assert attachment.calls == 1


def test_a_hook_that_calls_the_model_with_labels_is_refused():
    model, batch = tiny.llama().train(), tiny.batch()
    attach(model, "nll")
    model(**batch)
    handle = model.model.layers[0].register_forward_hook(lambda *_: model(**batch) and None)
    with pytest.raises(UnsupportedModelError, match="by its forward or by a hook"):
        model(**batch)
    handle.remove()
    model(**batch).loss.backward()


@pytest.mark.parametrize("kernel", ["auto", "logits"])
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vjp, torch.func.jacrev])
def test_a_transform_of_torch_func_is_refused(transform, kernel):
    model, batch = tiny.llama().train(), tiny.batch()
    attach(model, {"name": "nll", "kernel": kernel})

    def loss(weights):
        return torch.func.functional_call(model, weights, (), batch).loss

    weights = dict(model.named_parameters())
    with pytest.raises(UnsupportedModelError, match=r"transform of torch\.func .* Call loss\.backward\(\) or"):
        transform(loss, weights) if transform is torch.func.vjp else transform(loss)(weights)
    assert loss(weights).requires_grad


@pytest.mark.parametrize("kernel", ["auto", "logits"])
def test_a_second_backward_pass_is_as_the_first_or_is_refused(kernel):
    model, batch = tiny.llama().train(), tiny.batch()
    attachment = attach(model, {"name": "nll", "kernel": kernel})
    expected = attached.truth(model, batch, oracle.nll)[1]
    with attachment.answering(want_logits=True if kernel == "logits" else None):
        loss = model(**batch).loss
    for _ in range(2):
        model.zero_grad()
        loss.backward(retain_graph=True)
        assert attached.grad_gap(tiny.gradients(model), expected) < 1e-5
    if kernel == "logits":
        loss = model(**batch).loss
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match=r"a second backward pass .*attachment\.answering\(want_logits=True\)"):
            loss.backward()
