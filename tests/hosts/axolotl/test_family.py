"""Losses that Axolotl ships as well: the same weights."""

from __future__ import annotations

import pytest
from support import tiny

pytest.importorskip("axolotl")

from support.axolotl_runs import LORA, PACKED, train, write_config

pytestmark = pytest.mark.host

# Weights reach 3: a rate of 1, as elsewhere, would multiply what float32 rounds off.
SPLIT = {"micro_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2, "learning_rate": 0.2}


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize(
    "kind", [{}, LORA, pytest.param(PACKED, marks=pytest.mark.newest)], ids=["full", "lora", "packed"]
)
def test_weights_equal_those_of_use_eaft(kind, alpha, home):
    """It does not divide the entropy: weights reach 3."""
    changes = {**SPLIT, **kind}
    ours = train(write_config(home, **changes, loss={"name": "eaft", "normalizer": 1, "alpha": alpha}))
    stock = {"use_eaft": True, "eaft_alpha": alpha, "drop": ["loss", "plugins"]}
    theirs = train(write_config(home, "theirs.yml", **changes, **stock))
    assert "dft/loss" in ours.logs[0]
    assert "dft/loss" not in theirs.logs[0]
    assert tiny.max_gap(ours.weights, theirs.weights) < 1e-6
    assert [entry["loss"] for entry in ours.logs] == pytest.approx([entry["loss"] for entry in theirs.logs], rel=1e-5)
