"""The logits path: the gradient takes the place of logits that nobody reads again, and of no others."""

from __future__ import annotations

import pytest
import torch
from support import attached, tiny
from support.counting import WatchMemory

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
