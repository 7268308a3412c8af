"""A copy of a model runs the copy's weights, also where its forward became a function that holds the model."""

from __future__ import annotations

import copy
import functools
import pickle
import types

import pytest
import torch
from support import attached, tiny
from transformers import LlamaForCausalLM

from dft_plugin import attach


def in_a_closure(model):
    own = model.forward

    @functools.wraps(type(model).forward)
    def wrapped(self, *args, **kwargs):
        return own(*args, **kwargs)

    model.forward = types.MethodType(wrapped, model)


def without_a_method(model):
    model.forward = lambda *args, **kwargs: LlamaForCausalLM.forward(model, *args, **kwargs)


def as_a_default(model):
    def wrapped(*args, __own=model.forward, **kwargs):
        return __own(*args, **kwargs)

    model.forward = wrapped


def as_a_partial(model):
    model.forward = functools.partial(model.forward, use_cache=False)


def by_its_parts(model):
    parts, head = {"backbone": [model.model]}, model.lm_head

    def wrapped(input_ids=None, attention_mask=None, labels=None, **kwargs):
        (backbone,) = parts["backbone"]
        hidden = backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits = head(hidden)
        loss = None if labels is None else model.loss_function(logits, labels, model.config.vocab_size)
        return type(made)(loss=loss, logits=logits)

    made = model(**tiny.batch())
    model.forward = wrapped


def twice(model):
    in_a_closure(model)
    in_a_closure(model)


class Called:
    """Calls what it holds, and does not want to be pickled, as accelerate's wrappers do not."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, *args, **kwargs):
        return self.inner(*args, **kwargs)

    def __getstate__(self):
        raise pickle.PicklingError("unwrap the model first")


def as_an_object(model):
    model.forward = Called(model.forward)


def as_an_object_in_a_closure(model):
    as_an_object(model)
    in_a_closure(model)


WRAPPERS = [
    in_a_closure,
    without_a_method,
    as_a_default,
    as_a_partial,
    by_its_parts,
    twice,
    as_an_object,
    as_an_object_in_a_closure,
]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("warm", [False, True])
def test_a_copy_of_a_model_in_a_wrapper_runs_its_own_weights(wrap, warm):
    model, batch = tiny.llama().train(), tiny.batch()
    plain = attached.noisy(copy.deepcopy(model), 0.2)
    wrap(model)
    attach(model)
    if warm:
        attached.backward(model, batch)
    torch.manual_seed(0)
    before = attached.backward(model, batch)
    twin = copy.deepcopy(model)
    twin.load_state_dict(plain.state_dict())
    expected = attached.truth(plain, batch)
    assert torch.equal(twin(input_ids=batch["input_ids"]).logits, plain(input_ids=batch["input_ids"]).logits)
    attached.assert_same(attached.backward(twin, batch), expected)
    attached.assert_same(attached.backward(model, batch), before)
    twin.forward.detach()
    assert torch.equal(twin(input_ids=batch["input_ids"]).logits, plain(input_ids=batch["input_ids"]).logits)


@pytest.mark.parametrize("wrap", [in_a_closure, as_a_partial, twice, as_an_object, as_an_object_in_a_closure])
def test_a_copy_of_a_model_that_was_wrapped_after_the_loss_was_attached(wrap):
    model, batch = tiny.llama().train(), tiny.batch()
    plain = attached.noisy(copy.deepcopy(model), 0.2)
    model.forward = LlamaForCausalLM.forward.__get__(model)
    attachment = attach(model)
    wrap(model)
    twin = copy.deepcopy(model)
    twin.load_state_dict(plain.state_dict())
    attached.assert_same(attached.backward(twin, batch), attached.truth(plain, batch))
    assert attachment.calls == 0


def test_an_attachment_is_copied_with_its_model():
    model, batch = tiny.llama().train(), tiny.batch()
    attachment = attach(model)
    in_a_closure(model)
    twin = copy.deepcopy(attachment)
    assert twin is not attachment
    assert twin.model is not model
    attached.noisy(twin.model, 0.2)
    expected = attached.truth(twin.model, batch)
    attached.assert_same(attached.backward(twin.model, batch), expected)
    assert (attachment.calls, twin.calls) == (0, 1)


def test_what_wrappers_share_and_the_model_is_not_in_stays_shared():
    model, batch = tiny.llama().train(), tiny.batch()
    own, calls = model.forward, [0]

    def wrapped(*args, **kwargs):
        calls[0] += 1
        return own(*args, **kwargs)

    model.forward = wrapped
    attach(model)
    copy.deepcopy(model)(**batch)
    assert calls == [1]


@pytest.mark.parametrize("wrap", [in_a_closure, without_a_method, twice])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo asks for it
def test_a_copy_with_the_same_weights_and_compiled_blocks(wrap):
    from accelerate.utils import compile_regions

    model, batch = tiny.llama().train(), tiny.batch()
    theirs = attached.truth(model, batch)
    wrap(model)
    attachment = attach(model)
    regions, passed = compile_regions(model, backend="eager"), []
    assert regions.model is not model.model
    regions.model.register_forward_hook(lambda module, *_: passed.append(module))
    model.zero_grad()
    loss = regions(**batch).loss
    loss.backward()
    attached.assert_same((loss.item(), tiny.gradients(model)), theirs)
    assert len(passed) == 1, "the copies of a module share their hooks"
    assert passed[0] is regions.model
    assert attachment.calls == 1
    assert attachment.route.path == "lean"
