"""What a hook on the head does to its input or output, it does to the loss."""

from __future__ import annotations

import peft
import pytest
import torch
from support import attached, tiny

from dft_plugin import attach

FORWARD = {
    "casts": lambda module, args, output: output.to(torch.float32),
    "scales": lambda module, args, output: output * 1.5,
    "shifts one token": lambda module, args, output: output + torch.nn.functional.one_hot(torch.tensor(7), 128),
    "only looks": lambda module, args, output: None,
}
BEFORE = {
    "a tuple": lambda module, args: (args[0] * 0.5,),
    "a tensor": lambda module, args: args[0] * 0.5,
    "only looks": lambda module, args: None,
}


@pytest.fixture(params=["plain", "lora on the head", "saved head"])
def model(request):
    model = tiny.llama().train()
    if request.param == "plain":
        return model
    where = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    if request.param == "lora on the head":
        where = {"target_modules": ["q_proj", "lm_head"]}
    torch.manual_seed(1)
    return attached.noisy(peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, **where)), 0.1)


def head_of(model):
    return (model.get_base_model() if isinstance(model, peft.PeftModel) else model).lm_head


def compare(model):
    batch = tiny.batch()
    theirs = attached.truth(model, batch)
    attachment = attach(model, {"name": "dft", "scratch_mb": 1})
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)
    return attachment


@pytest.mark.parametrize("hook", FORWARD.values(), ids=FORWARD)
def test_a_forward_hook(model, hook):
    head_of(model).register_forward_hook(hook)
    assert "hooks" in compare(model).route.why_not_lean


@pytest.mark.parametrize("hook", BEFORE.values(), ids=BEFORE)
def test_a_forward_pre_hook(model, hook):
    head_of(model).register_forward_pre_hook(hook)
    compare(model)


def test_hooks_with_keywords(model):
    head_of(model).register_forward_pre_hook(lambda module, args, kwargs: ((args[0] * 0.5,), kwargs), with_kwargs=True)
    head_of(model).register_forward_hook(lambda module, args, kwargs, output: output * 3.0, with_kwargs=True)
    compare(model)


def test_a_hook_on_the_layer_inside_an_adapter():
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["lm_head"])
    model = attached.noisy(peft.get_peft_model(tiny.llama().train(), config), 0.1)
    head_of(model).base_layer.register_forward_hook(lambda module, args, output: output * 1.5)
    compare(model)


def test_a_hook_on_the_saved_copy_and_one_on_what_wraps_it():
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = attached.noisy(peft.get_peft_model(tiny.llama().train(), config), 0.1)
    head_of(model).register_forward_hook(lambda module, args, output: output + 1.0)
    head_of(model).register_forward_pre_hook(lambda module, args: (args[0] + 0.1,))
    head_of(model).modules_to_save["default"].register_forward_hook(lambda module, args, output: output.square())
    compare(model)


def saved_head():
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    return attached.noisy(peft.get_peft_model(tiny.llama().train(), config), 0.1)


@pytest.mark.parametrize("make", [lambda: tiny.llama().train(), saved_head], ids=["head", "what wraps a saved copy"])
def test_a_backward_hook_changes_the_gradient_as_in_the_stock_model(make):
    batch = tiny.batch()
    stock, ours = make(), make()
    for model in (stock, ours):
        head_of(model).register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * 2.0,))
    attach(ours, "nll")
    attached.assert_same(attached.backward(ours, batch), attached.backward(stock, batch), loss_gap=1e-5)


def test_a_hook_that_comes_later_and_one_that_goes():
    model, batch = tiny.llama().train(), tiny.batch()
    plain = attached.truth(model, batch)
    attachment = attach(model)
    attached.assert_same(attached.backward(model, batch), plain)
    handle = model.lm_head.register_forward_hook(FORWARD["scales"])
    attachment.detach()
    scaled = attached.truth(model, batch)
    attachment = attach(model)
    attached.assert_same(attached.backward(model, batch), scaled)
    handle.remove()
    attached.assert_same(attached.backward(model, batch), plain)
    assert attachment.route.why_not_lean is None


def test_a_hook_sees_hidden_states_and_logits_of_every_scored_token_once():
    model, batch = tiny.llama().train(), tiny.batch()
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append((args[0].shape, output.shape)))
    attach(model)
    attached.backward(model, batch)
    seen.clear()
    attached.backward(model, batch)
    tokens = int((batch["labels"][:, 1:] != -100).sum())
    assert seen.pop(0) == ((1, 32), (1, tiny.VOCAB)), "one row, to see what it trains"
    assert seen == [((tokens, 32), (tokens, tiny.VOCAB))]


def test_the_head_has_its_hooks_back_after_an_error():
    model, batch = tiny.llama().train(), tiny.batch()
    hook = FORWARD["scales"]
    model.lm_head.register_forward_hook(hook)
    attach(model)
    with pytest.raises(ValueError, match="labels hold 999"):
        model(**{**batch, "labels": torch.full_like(batch["labels"], 999)})
    assert list(model.lm_head._forward_hooks.values()) == [hook]
    assert "forward" not in model.lm_head.__dict__


def learned_bias(model):
    bias = torch.nn.Parameter(torch.linspace(-1, 1, tiny.VOCAB))
    model.lm_head.register_forward_hook(lambda module, args, output: output + bias)
    return bias


def learned_branch(model):
    branch = torch.nn.Linear(32, tiny.VOCAB)
    linear = model.lm_head.forward
    model.lm_head.forward = lambda hidden: linear(hidden) + branch(hidden)
    return branch.weight


@pytest.mark.parametrize("add", [learned_bias, learned_branch])
def test_what_a_hook_or_a_patch_trains_outside_the_head_is_trained(add):
    batch = tiny.batch()
    grads = []
    for ours in (False, True):
        torch.manual_seed(2)
        model = tiny.llama().train()
        outside = add(model)
        if ours:
            attach(model, "nll")
        for _ in range(2):
            outside.grad = None
            model(**batch).loss.backward()
        grads.append(outside.grad)
    assert float((grads[1] - grads[0]).norm() / grads[0].norm()) < 1e-5
