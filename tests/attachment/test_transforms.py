"""What a model does to logits, labels and loss is each batch's own, though it is read late or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import attached, tiny
from support.odd import Odd, build

from dft_plugin import attach
from dft_plugin.core.stats import Sum
from dft_plugin.errors import UnsupportedModelError


class Heated(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        return logits / kwargs["heat"]


class HeatedInPlace(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        return logits.div_(kwargs["heat"]) if kwargs["heat"] != 1.0 else logits


class Capped(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        return (logits / kwargs["heat"]).tanh() * kwargs["heat"]


class ByColumnLater(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        return logits if kwargs["heat"] == 1.0 else logits + torch.linspace(0, 1, logits.shape[-1])


class Rounding(Odd):
    """As Unsloth's forward for GPUs: logits in the dtype of the config, whatever the head gave."""

    rounds_to = torch.bfloat16

    def odd(self, logits, hidden_BSD, kwargs):
        return logits.to(self.rounds_to)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_that_are_only_rounded_are_not_made(dtype):
    model = build(Rounding)
    model.rounds_to = dtype
    batch = tiny.batch()
    stock = model(**batch).loss.item()
    attachment = attach(model, "nll")
    for _ in range(2):
        assert model(**batch).loss.item() == pytest.approx(stock, rel=2e-3)
    assert attachment.route.path == "lean"


def hooked(model):
    model.lm_head.register_forward_hook(lambda module, args, output: None)
    return model


def lora(model):
    peft = pytest.importorskip("peft")
    return attached.noisy(peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"])))


@pytest.mark.parametrize("wrap", [lambda model: model, hooked, lora], ids=["read", "called", "LoRA"])
@pytest.mark.parametrize("kind", [Heated, HeatedInPlace, Capped, ByColumnLater])
def test_each_batch_is_scored_with_its_own_transform(kind, wrap):
    model, stock = wrap(build(kind)), wrap(build(kind))
    stock.load_state_dict(model.state_dict())
    attachment = attach(model, "nll")
    for step, heat in enumerate([1.0, 0.5, 0.5, 3.0, 1.0]):
        batch = {**tiny.batch(masked=step, seed=step), "heat": heat}
        attached.assert_same(attached.backward(model, batch), attached.backward(stock, batch), loss_gap=5e-6)
        tokens = attachment.drain(training=True).sums_K[Sum.TOKENS]
        assert tokens == (batch["labels"][:, 1:] != -100).sum()


def test_a_scale_that_changes_by_less_than_the_probe_tolerates_is_the_batchs_own():
    model = build(Heated)
    attachment = attach(model, "nll")
    for heat in (1.0, 1 / (1 + 2e-5)):
        model(**tiny.batch(), heat=heat)
        assert attachment.route.transform.scale == float(torch.tensor(1.0) / heat)


def test_only_a_change_after_a_batch_without_one_is_scored_twice():
    model, calls = build(Heated), []
    attachment = attach(model, "nll")
    kernel = attachment.plan.kernel
    model(**tiny.batch())

    def counting(*args, **kwargs):
        calls[-1] += 1
        return kernel(*args, **kwargs)

    attachment.plan = replace(attachment.plan, kernel=counting)
    for heat in (1.0, 1.5, 2.0, 2.5, 2.5, 1.0, 1.0):
        calls.append(0)
        model(**tiny.batch(), heat=heat)
    assert calls == [1, 2, 1, 1, 1, 2, 1]


def test_an_asked_for_kernel_stops_at_the_batch_that_cannot_be_scored_by_it():
    model = build(ByColumnLater)
    attach(model, {"name": "nll", "kernel": "chunked"})
    model(**tiny.batch())
    with pytest.raises(UnsupportedModelError, match="does more to its logits than to scale and cap"):
        model(**tiny.batch(), heat=2.0)


def test_a_pass_that_fails_tells_nothing_of_the_next_one():
    # Its steps were seen, but not what came of them.
    model, stock = build(Heated), build(Heated)
    attachment = attach(model, "nll")
    kernel = attachment.plan.kernel
    for _ in range(2):
        model(**tiny.batch(), heat=2.0)

    def out_of_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("as a large batch does")

    attachment.plan = replace(attachment.plan, kernel=out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        model(**tiny.batch(), heat=3.0)
    attachment.plan = replace(attachment.plan, kernel=kernel)
    batch = {**tiny.batch(), "heat": 3.0}
    attached.assert_same(attached.backward(model, batch), attached.backward(stock, batch), loss_gap=5e-6)


def test_an_evaluation_between_two_steps_is_scored_with_its_own_transform_and_so_are_they():
    model, stock = build(Capped), build(Capped)
    attach(model, "nll")
    for heat, there in ((2.0, 2.0), (2.0, 5.0), (2.0, 2.0)):
        batch = {**tiny.batch(), "heat": heat}
        attached.assert_same(attached.backward(model, batch), attached.backward(stock, batch), loss_gap=5e-6)
        with torch.no_grad():
            ours, theirs = (m(**tiny.batch(), heat=there).loss for m in (model, stock))
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


class ByTensor(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        return logits * torch.tensor(2.0)


def test_what_hooks_have_packed_stays_packed_until_the_backward_pass():
    # Hooks that offload activations hand each out once.
    model, unpacked = build(ByTensor), []
    attach(model, "nll")
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: unpacked.append(1) or tensor):
        model(**tiny.batch())
        unpacked.clear()
        loss = model(**tiny.batch()).loss
        assert not unpacked
        loss.backward()
    assert unpacked


class MaskedInPlace(Odd):
    def finish(self, logits, labels, kwargs):
        labels[:, :8] = -100
        return super().finish(logits, labels, kwargs)


class MaskedCopy(Odd):
    def finish(self, logits, labels, kwargs):
        return super().finish(logits, labels.masked_fill(labels < 50, -100), kwargs)


@pytest.mark.parametrize("kernel", ["auto", "logits"])
@pytest.mark.parametrize("kind", [MaskedInPlace, MaskedCopy])
def test_labels_that_the_class_changes_are_scored_as_it_hands_them_on(kind, kernel):
    model, stock = build(kind), build(kind)
    attach(model, {"name": "nll", "kernel": kernel})
    for step in range(2):
        ours, theirs = (attached.backward(m, tiny.batch(seed=step)) for m in (model, stock))
        attached.assert_same(ours, theirs, loss_gap=5e-6)


def adding(finish):
    class Adds(Odd):
        def finish(self, logits, labels, kwargs):
            extra = 1e-3 * self.lm_head.weight.square().sum()
            return finish(super().finish(logits, labels, kwargs), extra)

    return build(Adds)


SUMS = {
    "before": lambda loss, extra: extra + loss,
    "behind": lambda loss, extra: loss + extra,
    "in place": lambda loss, extra: loss.add_(extra),
    "three": lambda loss, extra: extra + (loss + extra),
    "not by a sum": lambda loss, extra: loss - extra,
}
PRODUCTS = {
    "2": lambda loss, extra: extra + loss + loss,
    "1.5": lambda loss, extra: loss + (extra + 0.5 * loss),
    "3": lambda loss, extra: torch.add(extra, loss, alpha=3),
    "-1": lambda loss, extra: extra - loss,
}


@pytest.mark.parametrize("finish", SUMS.values(), ids=SUMS.keys())
def test_what_a_model_adds_to_its_loss_is_added(finish):
    model, stock = adding(finish), adding(finish)
    attach(model, "nll")
    for step in range(2):
        ours, theirs = (attached.backward(m, tiny.batch(seed=step)) for m in (model, stock))
        attached.assert_same(ours, theirs, loss_gap=5e-6)


PASSES = {
    "training": (True, torch.enable_grad),
    "evaluation": (False, torch.no_grad),
    "training without a graph": (True, torch.no_grad),
}


@pytest.fixture(params=PASSES.values(), ids=PASSES.keys())
def first_pass(request):
    return request.param


@pytest.mark.parametrize("kernel", ["auto", "logits"])
@pytest.mark.parametrize("factor", PRODUCTS)
def test_a_loss_that_stands_in_a_sum_otherwise_than_once_is_refused(factor, first_pass, kernel):
    training, grad = first_pass
    model = adding(PRODUCTS[factor]).train(training)
    attach(model, {"name": "nll", "kernel": kernel})
    with grad(), pytest.raises(UnsupportedModelError, match=rf"multiplies the loss that it asks for by {factor},"):
        model(**tiny.batch())


BENDS = {
    "Clamp": lambda loss, extra: extra + loss.clamp(max=10),
    "Minimum": lambda loss, extra: torch.minimum(loss, extra.new_tensor(5.0)),
    "Mul": lambda loss, extra: extra + loss * (1 + loss),
    "Div": lambda loss, extra: (loss + extra) / (1 + loss - extra + extra),
    "Where": lambda loss, extra: torch.where(loss > 5, 5.0, loss) + extra,
    "Expm1": lambda loss, extra: torch.expm1(loss),
}


@pytest.mark.parametrize("kernel", ["auto", "logits"])
@pytest.mark.parametrize("bend", BENDS)
def test_a_loss_that_is_bent_is_refused(bend, first_pass, kernel):
    training, grad = first_pass
    model = adding(BENDS[bend]).train(training)
    attach(model, {"name": "nll", "kernel": kernel})
    with (
        grad(),
        pytest.raises(UnsupportedModelError, match=rf"bends the loss that it asks for \({bend}Backward"),
    ):
        model(**tiny.batch())


STRAIGHT = {
    "stacked": lambda loss, extra: torch.stack([loss, extra]).sum(),
    "a mean of one": lambda loss, extra: loss[None].mean() + extra,
    "a factor of one": lambda loss, extra: (loss * 2 + 2 * extra) / 2,
    "in float64": lambda loss, extra: (loss.double() + extra).float(),
}


@pytest.mark.parametrize("finish", STRAIGHT.values(), ids=STRAIGHT.keys())
def test_what_leaves_the_loss_as_it_is_is_not_refused(finish, first_pass):
    training, grad = first_pass
    model, stock = (adding(finish).train(training) for _ in range(2))
    attach(model, "nll")
    for step in range(2):
        with grad():
            ours, theirs = (m(**tiny.batch(seed=step)).loss for m in (model, stock))
        assert ours.item() == pytest.approx(theirs.item(), rel=5e-6)
        assert ours.requires_grad == theirs.requires_grad


def test_what_a_model_computes_after_its_loss_has_no_graph_in_an_evaluation():
    model = tiny.llama().eval()
    forward = type(model).forward

    class Judging(type(model)):
        def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
            out = forward(self, input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
            out["value"] = self.model.embed_tokens(input_ids).sum(-1)
            return out

    model.__class__ = Judging
    attach(model, "nll")
    with torch.no_grad():
        output = model(**tiny.batch())
        assert not torch.is_grad_enabled()
    assert not output["value"].requires_grad
    assert not output.loss.requires_grad


@pytest.mark.parametrize("make", [tiny.llama, tiny.mixtral])
@pytest.mark.parametrize("want_logits", [True, False])
def test_evaluation_in_inference_mode(make, want_logits):
    model, batch = make().eval(), tiny.batch()
    stock = float(model(**batch).loss.detach())
    attachment = attach(model, "nll")
    model(**batch).loss.backward()
    with torch.inference_mode(), attachment.answering(want_logits=want_logits):
        for _ in range(2):
            assert float(model(**tiny.batch()).loss) == pytest.approx(stock, rel=1e-5)
