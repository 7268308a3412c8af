"""Counts of the targets' probabilities in an ms-swift run agree with what it logs."""

from __future__ import annotations

import pytest
from support import counted, swift_runs

pytestmark = pytest.mark.host


def test_counts_stand_beside_the_log_and_agree_with_it(home, tmp_path):
    config = swift_runs.config(home, tmp_path / "out", save_strategy="steps", save_steps=1)
    swift_runs.train(config, "dft")
    (found,) = tmp_path.rglob("dft_probabilities.jsonl")
    *_, state = sorted(found.parent.glob("checkpoint-*/trainer_state.json"))
    counted.assert_kept(found.parent, state)
