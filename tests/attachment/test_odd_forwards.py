"""Forwards that do something of their own to head, logits or loss train as the stock model does, or are refused."""

from __future__ import annotations

import threading

import pytest
import torch
from support import attached, tiny
from support.odd import Odd
from torch import nn
from transformers import LlamaForCausalLM

from dft_plugin import attach
from dft_plugin.errors import UnsupportedModelError


class LearnedScale(Odd):
    def prepare(self):
        self.log_scale = nn.Parameter(torch.zeros(()))

    def odd(self, logits, hidden_BSD, kwargs):
        return logits * self.log_scale.exp()


class GatedResidual(Odd):
    def prepare(self):
        self.gate, self.extra = nn.Parameter(torch.zeros(())), nn.Linear(32, tiny.VOCAB)

    def odd(self, logits, hidden_BSD, kwargs):
        return logits + self.gate * self.extra(hidden_BSD)


class Heated(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        return logits / kwargs["heat"]


class Viewed(Odd):
    def project(self, hidden_BSD):
        return self.lm_head(hidden_BSD.view(-1, 32)).view(*hidden_BSD.shape[:2], -1)


class ByPosition(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        return logits * torch.linspace(0.5, 1.5, hidden_BSD.shape[1])[:, None]


class Flat(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        return logits.flatten(0, 1) if logits.shape[:2] == hidden_BSD.shape[:2] else logits


class ZLossLater(Odd):
    weight = 0.0

    def finish(self, logits, labels, kwargs):
        loss = super().finish(logits, labels, kwargs)
        return loss + self.weight * logits.logsumexp(-1).square().mean() if self.weight else loss


class Centred(nn.Linear):
    def forward(self, hidden_BSD):
        return super().forward(hidden_BSD - hidden_BSD.mean(-2, keepdim=True))


class Shifting(nn.Linear):
    def forward(self, hidden_BSD):
        return super().forward(hidden_BSD + 0.5 * hidden_BSD.roll(1, -2))


class CentredHead(Odd):
    head_class = Centred

    def prepare(self):
        self.lm_head = self.head_class(32, tiny.VOCAB, bias=False)


class ShiftingHead(CentredHead):
    head_class = Shifting


class ThreeDimensions(CentredHead):
    class head_class(nn.Linear):  # noqa: N801
        def forward(self, hidden_BSD):
            return torch.einsum("bsd,vd->bsv", hidden_BSD, self.weight)


class Normalised(Odd):
    def prepare(self):
        self.lm_head = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(32), nn.Linear(32, tiny.VOCAB))

    def project(self, hidden_BSD):
        return self.lm_head(hidden_BSD).view(*hidden_BSD.shape[:2], -1)


class BorrowingHook(Odd):
    def prepare(self):
        self.model.layers[0].register_forward_hook(lambda module, args, output: self.__dict__.update(kept=output))
        self.lm_head.register_forward_hook(lambda module, args, output: output * (1 + self.__dict__["kept"].mean()))


class Spectral(Odd):
    def prepare(self):
        nn.utils.parametrizations.spectral_norm(self.lm_head)


ODD = (LearnedScale, GatedResidual, Heated, Viewed, ByPosition, Flat, ZLossLater, CentredHead, ShiftingHead)
ODD = (*ODD, ThreeDimensions, Normalised, BorrowingHook, Spectral)


def steps(kind, ours, **kwargs):
    """Losses and gradients of three steps, the second at another length, the third with other arguments."""
    torch.manual_seed(0)
    model = kind(tiny.llama().config).train()
    if ours:
        attach(model, "nll")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for step in range(3):
        batch = tiny.batch(length=20 + 4 * step, seed=step)
        model.weight = 0.1 * min(step, 1)
        given = {"heat": 0.5} if kind is Heated and step == 2 else {}
        loss, grads = attached.backward(model, {**batch, **given})
        found.append((loss, grads))
        optimizer.step()
    return found


@pytest.mark.parametrize("kind", ODD)
def test_it_trains_as_the_stock_model_does(kind):
    for ours, stock in zip(steps(kind, True), steps(kind, False), strict=True):
        attached.assert_same(ours, stock, loss_gap=5e-6, gradient_gap=1e-4)


@pytest.mark.parametrize("first", ["train", "eval"])
def test_a_scale_that_is_another_one_in_evaluation(first):
    class EvalScale(Odd):
        def odd(self, logits, hidden_BSD, kwargs):
            return logits if self.training else 0.5 * logits

    model, batch = EvalScale(tiny.llama().config), tiny.batch()
    expected = {}
    for mode in (True, False):
        model.train(mode)
        with torch.no_grad():
            expected[mode] = float(model(**batch).loss)
    attachment = attach(model, "nll")
    for mode in (first == "train", first != "train"):
        model.train(mode)
        with torch.no_grad(), attachment.answering(want_logits=False):
            assert float(model(**batch).loss) == pytest.approx(expected[mode], rel=1e-5)


@pytest.mark.parametrize("by_class", [False, True])
def test_an_ignore_index_of_the_models_own(by_class):
    class Ignores(Odd):
        def finish(self, logits, labels, kwargs):
            own = {"ignore_index": 7} if by_class else {}
            return super().finish(logits, labels, {**kwargs, **own})

    batch = tiny.batch()
    batch["labels"][:, 8:12] = 7
    batch["labels"][batch["labels"] == -100] = 7
    given = {} if by_class else {"ignore_index": 7}
    stock, ours = Ignores(tiny.llama().config).train(), Ignores(tiny.llama().config).train()
    ours.load_state_dict(stock.state_dict())
    attach(ours, "nll")
    expected = attached.backward(stock, {**batch, **given})
    attached.assert_same(attached.backward(ours, {**batch, **given}), expected, loss_gap=1e-5)


def test_a_factor_on_the_loss_is_refused_by_name():
    class Half(Odd):
        def finish(self, logits, labels, kwargs):
            return 0.5 * super().finish(logits, labels, kwargs)

    model = Half(tiny.llama().config).train()
    attach(model, "nll")
    with pytest.raises(UnsupportedModelError, match=r"Half multiplies the loss that it asks for by 0\.5"):
        model(**tiny.batch())


def test_an_output_that_is_no_mapping_is_refused_by_name():
    class Bare(Odd):
        def forward(self, *args, **kwargs):
            return super().forward(**kwargs).to_tuple()

    model = Bare(tiny.llama().config).train()
    attach(model, "nll")
    with pytest.raises(UnsupportedModelError, match="Bare returns a tuple for return_dict=True; a ModelOutput"):
        model(**tiny.batch())


def test_a_forward_that_names_no_arguments():
    class Star(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model, batch = Star(tiny.llama().config).train(), tiny.batch()
    expected = attached.truth(model, batch)
    attach(model)
    ids, rest = batch["input_ids"], {key: batch[key] for key in ("attention_mask", "labels")}
    assert float(model(ids, **rest).loss.detach()) == pytest.approx(expected[0], rel=1e-6)


def test_a_router_loss_in_a_step_without_targets():
    model, batch = tiny.mixtral().train(), tiny.batch()
    batch["labels"][:] = -100
    attach(model)
    for items in (0, torch.tensor(0)):
        assert float(model(**batch, num_items_in_batch=items).loss.detach()) == 0.0


def test_what_a_later_hook_trains_is_trained():
    model, batch = tiny.llama().train(), tiny.batch()
    model.lm_head.register_forward_hook(lambda module, args, output: output * 1.0)
    attach(model)
    model(**batch)
    bias = nn.Parameter(torch.zeros(tiny.VOCAB), requires_grad=False)
    model.lm_head.register_forward_hook(lambda module, args, output: output + bias)
    model(**batch)
    bias.requires_grad_()
    model(**batch).loss.backward()
    assert bias.grad.abs().max() > 0


class OwnLoss(Odd):
    """Makes its loss itself; what a token counts stands in `counts`."""

    def finish(self, logits, labels, kwargs):
        losses = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
        counts_N = (kwargs["counts"][:, 1:] * (labels[:, 1:] != -100)).flatten().float()
        return (losses * counts_N).sum() / counts_N.sum()


@pytest.mark.parametrize("odd", [0.0, 2.0], ids=["masked", "weighted"])
def test_a_loss_of_the_classes_own_that_counts_some_tokens_otherwise_is_refused(odd):
    batch = tiny.batch()
    even = torch.ones_like(batch["labels"], dtype=torch.float32)
    # Not among those that are looked at one by one.
    one = even.clone()
    one[0, 8] = odd
    for counts, trained in ((even, True), (one, False)):
        model = OwnLoss(tiny.llama().config).train()
        attach(model, "nll")
        if trained:
            model(**batch, counts=counts)
            continue
        with pytest.raises(UnsupportedModelError, match="others mask or weigh them by another input"):
            model(**batch, counts=counts)


def test_a_loss_of_the_classes_own_that_takes_no_other_labels_is_refused_by_name():
    class PadIsNothing(Odd):
        def finish(self, logits, labels, kwargs):
            return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=0)

    model, batch = PadIsNothing(tiny.llama().config).train(), tiny.batch()
    batch["labels"].clamp_(min=0)
    attach(model, "nll")
    with pytest.raises(UnsupportedModelError, match="takes your labels, but not other ones"):
        model(**batch)


def test_an_argument_that_cannot_be_copied_is_handed_on():
    class WithLock(Odd):
        def finish(self, logits, labels, kwargs):
            with kwargs.pop("lock"):
                return super().finish(logits, labels, kwargs)

    model, batch = WithLock(tiny.llama().config).train(), tiny.batch()
    expected = attached.truth(model, batch)
    attach(model)
    assert float(model(**batch, lock=threading.Lock()).loss.detach()) == pytest.approx(expected[0], rel=1e-6)
