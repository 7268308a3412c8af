"""torch.compile around an attached model, and an attachment inside a compiled one."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch
from support import attached, tiny

from dft_plugin import Attachment, attach

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    with warnings.catch_warnings():
        # torch warns of its own deprecated internals while it compiles.
        warnings.simplefilter("ignore")
        torch.compiler.reset()
        yield
        torch.compiler.reset()


def plain_names(grads):
    return {name.removeprefix("_orig_mod."): grad for name, grad in grads.items()}


# Inductor takes a minute to compile a tiny model; the other cases stop after autograd's tracing.
@pytest.mark.parametrize(
    ("order", "backend", "tied"),
    [
        ("attach, compile", "inductor", False),
        ("compile, attach", "aot_eager", True),
    ],
)
def test_a_compiled_model_gives_the_same_loss_and_gradients(order, backend, tied):
    model, batch = tiny.llama(num_hidden_layers=1, tie_word_embeddings=tied).train(), tiny.batch()
    theirs = attached.truth(model, batch)
    if order == "attach, compile":
        attach(model)
        compiled = torch.compile(model, backend=backend)
    else:
        compiled = torch.compile(model, backend=backend)
        attach(compiled)
    assert isinstance(model.forward, Attachment)
    for _ in range(3):
        loss, grads = attached.backward(compiled, batch)
        attached.assert_same((loss, plain_names(grads)), theirs)
    assert model.forward.calls == 3
    assert model.forward.route.path == "lean"


@pytest.mark.full
def test_a_model_compiled_in_place_gives_the_same_loss_and_gradients():
    model, batch = tiny.llama(num_hidden_layers=1).train(), tiny.batch()
    theirs = attached.truth(model, batch)
    attach(model)
    model.compile(backend="aot_eager")
    for _ in range(3):
        attached.assert_same(attached.backward(model, batch), theirs)


def test_a_second_length_and_a_batch_without_targets_run_compiled():
    model = tiny.llama(num_hidden_layers=1).train()
    batches = [tiny.batch(), tiny.batch(length=26, seed=1)]
    truths = [attached.truth(model, batch) for batch in batches]
    attach(model)
    compiled = torch.compile(model, backend="aot_eager")
    for batch, theirs in zip(batches * 2, truths * 2, strict=True):
        loss, grads = attached.backward(compiled, batch)
        attached.assert_same((loss, plain_names(grads)), theirs)
    nothing = {**batches[0], "labels": torch.full_like(batches[0]["labels"], -100)}
    assert attached.backward(compiled, nothing)[0] == 0.0


def test_what_stands_around_the_loss_is_not_traced_with_a_warning():
    model, batch = tiny.llama(num_hidden_layers=1).train(), tiny.batch()
    attach(model)
    model.compile(backend="eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(**batch, num_items_in_batch=torch.tensor(30)).loss.backward()
    broken = " ".join(map(str, torch._dynamo.utils.counters["graph_break"]))
    said = broken + " ".join(str(one.message) for one in caught)
    assert "get_ident" not in said
    assert "Tensor.item()" not in said
