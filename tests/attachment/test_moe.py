"""The auxiliary loss of a router: kept as the model computes it, weighted by tokens."""

from __future__ import annotations

import logging

import pytest
import torch
from support import attached, tiny

from dft_plugin import attach

ROUTER = {"output_router_logits": True, "router_aux_loss_coef": 0.5}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}

FAMILIES = {
    "mixtral": ("mixtral", {**ROUTER, "num_local_experts": 4}),
    "qwen2_moe": (
        "qwen2_moe",
        {**ROUTER, "num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    ),
    "qwen3_moe": ("qwen3_moe", {**ROUTER, **EXPERTS, "moe_intermediate_size": 32, "head_dim": 8}),
    "gpt_oss": ("gpt_oss", {**ROUTER, "num_local_experts": 4, "head_dim": 8}),
    "olmoe": ("olmoe", {**ROUTER, **EXPERTS}),
    "jetmoe": (
        "jetmoe",
        {
            "output_router_logits": True,
            "aux_loss_coef": 0.5,
            "num_local_experts": 4,
            "kv_channels": 8,
            "num_key_value_heads": 2,
        },
    ),
    "granitemoe, divisor": ("granitemoe", {**ROUTER, "logits_scaling": 5.0, "num_local_experts": 4}),
}


def build(name):
    model_type, changes = FAMILIES[name]
    return attached.build(model_type, **changes)


def parts(model, batch, num_items=None):
    """Cross-entropy and auxiliary loss of the model itself, and the gradients of what they should add up to."""
    extra = {} if num_items is None else {"num_items_in_batch": num_items}
    whole = model(**batch, **extra).loss
    for holder in (model, model.config):
        for key in ("router_aux_loss_coef", "aux_loss_coef", "output_router_logits"):
            if hasattr(holder, key):
                setattr(holder, key, type(getattr(holder, key))(0))
    plain = model(**batch, **extra).loss
    return plain, whole - plain


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kernel", ["chunked", "logits"])
def test_attached_likelihood_is_the_models_own_loss(name, kernel):
    model, batch = build(name), tiny.batch()
    theirs = attached.backward(model, batch)
    auxiliary = parts(build(name), batch)[1].item()
    if name == "jetmoe" and not auxiliary:
        pytest.skip("this transformers does not add it")
    assert abs(auxiliary) > 0.1, "there is no auxiliary loss to lose"
    attachment = attach(model, {"name": "nll", "kernel": kernel})
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)
    assert attachment.route.path == ("lean" if kernel == "chunked" else "logits")


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_auxiliary_loss_survives_gradient_checkpointing(reentrant):
    model, batch = tiny.mixtral().train(), tiny.batch()
    attached.checkpoint(model, reentrant)
    theirs = attached.backward(model, batch)
    attachment = attach(model, "nll")
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)
    assert attachment.route.path == "lean"


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("num_items", [200, torch.tensor(200)])
def test_the_auxiliary_loss_is_weighted_by_the_share_of_tokens(name, num_items):
    # Over micro-batches and ranks the shares add up to one; the model alone adds it once for each.
    batch = tiny.batch()
    count = int((batch["labels"][:, 1:] != -100).sum())
    plain, auxiliary = parts(build(name), batch, num_items=200)
    expected = float((plain + auxiliary * count / 200).detach())
    model = build(name)
    attach(model, "nll")
    loss, _ = attached.backward(model, {**batch, "num_items_in_batch": num_items})
    assert loss == pytest.approx(expected, rel=1e-6)
    assert loss != pytest.approx(float((plain + auxiliary).detach()), rel=1e-2)


def test_dft_adds_the_auxiliary_loss_unweighted_by_p():
    batch = tiny.batch()
    auxiliary = parts(tiny.mixtral().train(), batch)[1].item()
    model = tiny.mixtral(output_router_logits=False).train()
    expected = attached.truth(model, batch)[0] + auxiliary
    model = tiny.mixtral().train()
    attach(model)
    assert attached.backward(model, batch)[0] == pytest.approx(expected, rel=1e-6)


def test_without_router_logits_there_is_no_auxiliary_loss():
    model, batch = tiny.mixtral(output_router_logits=False).train(), tiny.batch()
    theirs = attached.truth(model, batch)
    attach(model)
    attached.assert_same(attached.backward(model, batch), theirs)


def test_a_batch_without_targets_trains_the_router_only_by_its_share():
    model, batch = tiny.mixtral().train(), tiny.batch()
    attach(model)
    nothing = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    loss, grads = attached.backward(model, {**nothing, "num_items_in_batch": 9})
    assert loss == 0.0
    assert all(not grad.any() for grad in grads.values())


def test_evaluation_keeps_the_auxiliary_loss_as_the_model_does():
    model, batch = tiny.mixtral().eval(), tiny.batch()
    with torch.no_grad():
        stock = model(**batch)
        attach(model, "nll")
        ours = model(**batch)
    assert float(ours.loss) == pytest.approx(float(stock.loss), rel=1e-6)
    torch.testing.assert_close(ours.aux_loss, stock.aux_loss)


def bamba(coefficient):
    return attached.build(
        "bamba",
        z_loss_coefficient=coefficient,
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=8,
        attn_layer_indices=[1],
    )


@pytest.mark.parametrize("coefficient", [0.0, 0.3])
def test_a_z_loss_is_made_of_logits_so_the_logits_are_scored(coefficient, caplog):
    model, batch = bamba(coefficient), tiny.batch()
    theirs = attached.backward(model, batch)
    attachment = attach(model, "nll")
    with caplog.at_level(logging.WARNING, "dft_plugin"):
        for _ in range(2):
            attached.assert_same(attached.backward(model, batch), theirs)
    if coefficient:
        assert attachment.route.path == "logits"
        assert "the model adds to its loss what it makes of its logits" in caplog.text
        assert len(caplog.records) == 1, "said once"
    else:
        assert attachment.route.path == "lean"


def test_a_z_loss_is_kept_when_the_first_batch_is_an_evaluation():
    # Without a graph nothing tells that the addition is made of logits.
    model, batch = bamba(0.3), tiny.batch()
    theirs = attached.backward(model, batch)
    attachment = attach(model, "nll")
    with torch.no_grad(), attachment.answering(want_logits=False):
        assert float(model(**batch).loss) == pytest.approx(theirs[0], rel=1e-6)
    attached.assert_same(attached.backward(model, batch), theirs)
    assert attachment.route.path == "logits"
