"""accelerate around an attached model: preparing, unwrapping, its hooks, offloading."""

from __future__ import annotations

import warnings

import pytest
import torch
from support import attached, tiny

from dft_plugin import attach


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_accelerate_neither_loses_it_nor_hides_it(mixed_precision):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    model, batch = tiny.llama().train(), tiny.batch()
    expected = attached.truth(model, batch)[0]
    attachment = attach(model)
    try:
        with warnings.catch_warnings():
            # accelerate says that there is no GPU.
            warnings.simplefilter("ignore")
            accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision)
            prepared = accelerator.prepare(model)
        tolerance = 1e-6 if mixed_precision == "no" else 5e-2
        assert prepared(**batch).loss.item() == pytest.approx(expected, rel=tolerance)
        kept = accelerator.unwrap_model(prepared)
        assert kept(**batch).loss.item() == pytest.approx(expected, rel=tolerance)
        bare = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        assert bare(**batch).loss.item() == pytest.approx(expected, rel=1e-6)
        assert attachment.calls == 3
    finally:
        AcceleratorState._reset_state()
        PartialState._reset_state()


def test_accelerate_dispatch_and_its_hooks():
    from accelerate import dispatch_model
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    batch = tiny.batch()
    for hooked in ("model", "head", "dispatched"):
        model = tiny.llama().train()
        theirs = attached.truth(model, batch)
        if hooked == "dispatched":
            dispatch_model(model, {"": "cpu"}, force_hooks=True)
        else:
            module = model if hooked == "model" else model.lm_head
            add_hook_to_module(module, AlignDevicesHook(execution_device="cpu", io_same_device=True))
        attachment = attach(model)
        for _ in range(2):
            attached.assert_same(attached.backward(model, batch), theirs)
        assert attachment.calls == 2
        assert attachment.route.path == "lean"
        attachment.detach()
        assert model(**batch).loss.item() == pytest.approx(attached.truth(model, batch, torch.ones_like)[0], rel=1e-5)


def test_a_head_whose_weight_is_offloaded_is_read_inside_its_forward():
    from accelerate import cpu_offload

    model, batch = tiny.llama().train(), tiny.batch()
    expected = attached.truth(model, batch)[0]
    cpu_offload(model.lm_head, execution_device=torch.device("cpu"))
    assert model.lm_head.weight.is_meta
    attachment = attach(model)
    for _ in range(2):
        with torch.no_grad():
            assert model(**batch).loss.item() == pytest.approx(expected, rel=1e-6)
    assert attachment.route.path == "lean"
    assert model.lm_head.weight.is_meta


def test_what_is_offloaded_by_accelerate_and_trained_gets_no_gradient_in_any_loss():
    """Why such a head is refused; shown without us."""
    from accelerate import cpu_offload

    model = tiny.llama().train()
    cpu_offload(model.lm_head, execution_device=torch.device("cpu"))
    model(**tiny.batch()).loss.backward()
    assert model.lm_head.weight.requires_grad
    assert model.lm_head.weight.grad is None
    assert model.model.embed_tokens.weight.grad.any()
