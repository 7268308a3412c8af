"""Losses that LLaMA-Factory ships as well: the same weights where it is right, and where it is not, by how much."""

from __future__ import annotations

import pytest
from support import tiny

pytest.importorskip("llamafactory")

from support import factory

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(factory.OLD, reason="LLaMA-Factory 0.9.4 ships neither EAFT nor ASFT"),
]

SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("kind", [{}, factory.LORA], ids=["full", "lora"])
def test_weights_equal_those_of_use_eaft_loss(kind, alpha, home, tmp_path):
    """Its divisor of the entropy is 3, a rounded ln 20: that would show by 1e-4."""
    # A rate of 1, as elsewhere, would multiply what float32 rounds off.
    config = factory.arguments(home, tmp_path, **kind, **SPLIT, learning_rate=0.2)
    ours = factory.train(config, {"name": "eaft", "normalizer": 3, "alpha": alpha})
    theirs = factory.train({**config, "use_eaft_loss": True, "eaft_alpha": alpha})
    assert tiny.max_gap(ours.after, theirs.after) < 1e-6
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert ours.moved > 1e-4, "nothing was trained"


def without_divergence(home, out, **changes):
    """ASFT whose divergence counts for nothing is DFT."""
    return factory.arguments(home, out, use_asft_loss=True, asft_alpha=0.0, max_steps=1, **changes)


def test_asft_of_a_step_in_one_piece_is_right(home, tmp_path):
    theirs = factory.train(without_divergence(home, tmp_path))
    ours = factory.train(factory.arguments(home, tmp_path, max_steps=1), "dft")
    assert tiny.max_gap(ours.after, theirs.after) < 1e-6


def test_asft_of_a_split_step_is_another_step(home, tmp_path):
    """Each micro-batch is divided by its own number of targets, and their sum by nothing: a step 2.5 times as long."""
    whole, split = (factory.train(without_divergence(home, tmp_path, **how)) for how in ({}, SPLIT))
    ours = factory.train(factory.arguments(home, tmp_path, max_steps=1, **SPLIT), "dft")
    assert tiny.max_gap(ours.after, whole.after) < 1e-6
    moved = {name: split.after[name] - split.before[name] for name in split.before}
    expected = {name: whole.after[name] - whole.before[name] for name in whole.before}
    times = {name: float(moved[name].norm() / expected[name].norm()) for name in moved}
    assert all(factor > 1.5 for factor in times.values()), times
