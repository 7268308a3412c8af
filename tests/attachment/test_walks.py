"""What a pass costs Python: a model with adapters has thousands of modules, and a GPU waits while they are walked."""

from __future__ import annotations

import pytest
from support import tiny
from torch import nn

from dft_plugin import attach


@pytest.fixture
def walks(monkeypatch):
    """Count what `named_modules` yields; whatever looks at all modules or parameters goes through it."""
    counted = []
    plain = nn.Module.named_modules

    def named_modules(self, *args, **kwargs):
        for found in plain(self, *args, **kwargs):
            counted.append(found[0])
            yield found

    monkeypatch.setattr(nn.Module, "named_modules", named_modules)
    return counted


def in_a_pass(layers, walks):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    model, batch = peft.get_peft_model(tiny.llama(num_hidden_layers=layers), config), tiny.batch()
    attach(model)
    for _ in range(3):
        model(**batch).loss.backward()
    walks.clear()
    model(**batch).loss.backward()
    return len(walks)


def test_what_a_pass_looks_at_does_not_grow_with_the_model(walks):
    assert in_a_pass(2, walks) == in_a_pass(6, walks) < 20


def test_the_first_passes_do(walks):
    model = tiny.llama()
    attach(model)
    walks.clear()
    model(**tiny.batch())
    assert len(walks) > 10
