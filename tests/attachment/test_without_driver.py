"""A build of torch for an accelerator, on a machine that has none."""

from __future__ import annotations

import torch
from support import tiny

from dft_plugin import attach


def test_an_accelerator_that_the_build_names_and_the_machine_lacks_is_not_asked(monkeypatch):
    if torch.accelerator.is_available():
        return
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    model = tiny.llama().train()
    attach(model)
    model(**tiny.batch()).loss.backward()
    assert model.lm_head.weight.grad.abs().sum() > 0
