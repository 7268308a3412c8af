"""What a model does to the logits of some rows or positions only shows in the loss; a probe has none of them."""

from __future__ import annotations

import pytest
import torch
from support import attached, tiny
from support.odd import Odd, build

from dft_plugin import attach


class LateSlice(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        logits[:, 6:] *= 2
        return logits


class LaterRows(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        return torch.cat([logits[:1], logits[1:] * 2])


class LateWhere(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        late = torch.arange(logits.shape[1])[:, None] > 6
        return torch.where(late, logits * 2, logits)


class LateFactor(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        return logits * (1 + (torch.arange(logits.shape[1]) > 6))[:, None]


class LateDivisor(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        return logits / (1 + (torch.arange(logits.shape[1]) > 6))[:, None]


class LaterRowsByIndex(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        rows = torch.arange(1, len(logits))
        return logits.index_put((rows,), logits[rows] * 2)


class EachByItself(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        return torch.stack([row * (1 if index == 0 else 2) for index, row in enumerate(logits)])


KINDS = [LateSlice, LaterRows, LateWhere, LateFactor, LateDivisor, LaterRowsByIndex, EachByItself]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_that_are_changed_by_their_place(kind):
    model, stock = build(kind), build(kind)
    attachment = attach(model, "nll")
    for step in range(2):
        ours, theirs = (attached.backward(m, tiny.batch(seed=step)) for m in (model, stock))
        attached.assert_same(ours, theirs, loss_gap=5e-6)
    assert "where they stand" in attachment.route.why_not_lean


class WholeSlices(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        return logits[:, :][:, -kwargs["tokens"] :, ...][..., : logits.shape[-1]].float() * torch.tensor(2.0) / 4


class FactorForEach(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        return logits.transpose(0, 1).mul(torch.full((1, 1, 1), 0.5)).transpose(0, 1).contiguous()


class FactorOnTheLeft(Odd):
    def odd(self, logits, hidden_BSD, kwargs):
        return torch.tensor(0.5) * logits


@pytest.mark.parametrize("kind", [WholeSlices, FactorForEach, FactorOnTheLeft])
def test_logits_that_are_changed_alike_are_scored_from_hidden_states(kind):
    model, stock = build(kind), build(kind)
    attachment = attach(model, "nll")
    ours, theirs = (attached.backward(m, {**tiny.batch(), "tokens": 20}) for m in (model, stock))
    attached.assert_same(ours, theirs, loss_gap=5e-6)
    assert attachment.route.path == "lean"
