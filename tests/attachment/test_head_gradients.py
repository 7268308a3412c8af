"""What a hook on the head does to gradients, it does to those of the whole loss, divided: as in the stock model."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from support import attached, tiny

from dft_plugin import attach
from dft_plugin.errors import UnsupportedModelError

BOUND = 1e-3
"""Between the largest gradients of the logits of a mean over 26 tokens, and those of a sum: see `test_the_bound`."""


def clamped(gradient):
    return gradient.clamp(-BOUND, BOUND)


def by_a_module_hook(head):
    head.register_full_backward_hook(lambda module, inputs, outputs: (clamped(inputs[0]),))


def by_a_module_pre_hook(head):
    head.register_full_backward_pre_hook(lambda module, outputs: (clamped(outputs[0]),))


def by_a_tensor_hook(head):
    head.register_forward_hook(lambda module, args, output: output.register_hook(clamped) and None)


def by_a_hook_on_a_tensor_inside(head):
    def halved(module, args, output):
        inside = output / 2
        inside.register_hook(clamped)
        return inside * 2

    head.register_forward_hook(halved)


def by_a_hook_on_what_goes_in(head):
    def pre(module, args):
        if args[0].requires_grad:
            args[0].register_hook(lambda gradient: torch.nn.functional.normalize(gradient, dim=-1))

    head.register_forward_pre_hook(pre)


class Clamped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits):
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx, gradient):
        return clamped(gradient)


def by_a_function_of_its_own(head):
    head.register_forward_hook(lambda module, args, output: Clamped.apply(output))


def by_a_node_hook(head):
    def hook(module, args, output):
        if output.grad_fn is not None:
            output.grad_fn.register_prehook(lambda gradients: tuple(map(clamped, gradients)))

    head.register_forward_hook(hook)


WAYS = [
    by_a_module_hook,
    by_a_module_pre_hook,
    by_a_tensor_hook,
    by_a_hook_on_a_tensor_inside,
    by_a_hook_on_what_goes_in,
    by_a_function_of_its_own,
    by_a_node_hook,
]


def by_hand(model, batch, num_items):
    """Gradients of the plain loss, divided before it goes backward."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    logp = logits[:, :-1].log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    loss = -(logp * (labels != -100)).sum() / num_items
    model.zero_grad()
    loss.backward()
    return loss.item(), tiny.gradients(model)


@pytest.mark.parametrize("kernel", ["auto", "logits"])
@pytest.mark.parametrize("where", ["head", "what wraps a saved copy", "inside an adapter"])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_that_are_clamped_are_those_of_the_divided_loss(way, where, kernel):
    model, batch, num_items = tiny.llama().train(), tiny.batch(), 100
    if where != "head":
        torch.manual_seed(1)
        targets = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
        if where == "inside an adapter":
            targets = {"target_modules": ["q_proj", "lm_head"]}
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, **targets)
        model = attached.noisy(peft.get_peft_model(model, config), 0.1)
        head = model.get_base_model().lm_head
        way(head.lora_B["default"] if where == "inside an adapter" else head)
    else:
        way(model.lm_head)
    theirs = by_hand(model, batch, num_items)
    attachment = attach(model, {"name": "nll", "kernel": kernel})
    for _ in range(2):
        model.zero_grad()
        loss = model(**batch, num_items_in_batch=num_items).loss
        loss.backward()
        attached.assert_same((loss.item(), tiny.gradients(model)), theirs)
    assert attachment.route.path == "logits"


def test_the_bound_lies_between_the_gradients_of_the_sum_and_of_the_mean():
    model, batch = tiny.llama().train(), tiny.batch()
    plain = by_hand(copy.deepcopy(model), batch, 100)
    by_a_tensor_hook(model.lm_head)
    kept = []
    model.lm_head.register_forward_hook(lambda module, args, output: output.register_hook(kept.append) and None)
    changed = by_hand(model, batch, 100)
    assert attached.grad_gap(changed[1], plain[1]) > 1e-2, "a few are clamped"
    assert float((kept[0].abs() < 0.99 * BOUND).float().mean()) > 0.5, "most are not"
    summed = copy.deepcopy(model)
    assert attached.grad_gap({n: g / 100 for n, g in by_hand(summed, batch, 1)[1].items()}, changed[1]) > 1e-1


def test_a_kernel_that_is_asked_for_by_name_is_refused():
    model = tiny.llama().train()
    by_a_module_hook(model.lm_head)
    attach(model, {"name": "nll", "kernel": "chunked"})
    with pytest.raises(UnsupportedModelError, match=r"a backward hook on its head .* Set `kernel: auto`"):
        model(**tiny.batch())


@pytest.mark.parametrize("when", ["before", "after an evaluation", "after a step"])
def test_whenever_the_hook_comes(when):
    model, batch = tiny.llama().train(), tiny.batch()
    if when == "before":
        by_a_tensor_hook(model.lm_head)
    attach(model, "nll")
    if when == "after an evaluation":
        with torch.no_grad():
            model(**batch)
    elif when == "after a step":
        attached.backward(model, batch)
    if when != "before":
        by_a_tensor_hook(model.lm_head)
    plain = tiny.llama().train()
    by_a_tensor_hook(plain.lm_head)
    count = int((batch["labels"][:, 1:] != -100).sum())
    attached.assert_same(attached.backward(model, batch), by_hand(plain, batch, count))


def test_a_head_that_only_multiplies_gradients_is_called_on_chunks():
    model, batch = tiny.llama().train(), tiny.batch()
    model.lm_head.register_forward_hook(lambda module, args, output: Tripled.apply(output))
    theirs = by_hand(model, batch, 10)
    attachment = attach(model, "nll")
    loss = model(**batch, num_items_in_batch=10).loss
    model.zero_grad()
    loss.backward()
    attached.assert_same((loss.item(), tiny.gradients(model)), theirs)
    assert attachment.route.path == "lean"


def test_a_head_that_is_called_under_autocast_stays_on_chunks():
    model, batch = tiny.llama().train(), tiny.batch()
    model.lm_head.register_forward_hook(lambda module, args, output: output * 1)
    attachment = attach(model, "nll")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**batch).loss.backward()
    assert attachment.route.why_not_lean == "the head has hooks, which see its logits"


class Tripled(Clamped):
    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3
