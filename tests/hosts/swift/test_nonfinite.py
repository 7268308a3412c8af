"""ms-swift: a step whose loss is no finite number is left out, or stops the run."""

from __future__ import annotations

import pytest

pytest.importorskip("swift")

from support import spoiled_runs, swift_runs

from dft_plugin.errors import NonFiniteError

pytestmark = pytest.mark.host

SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


def train(home, out, how, **changes):
    seen = []
    config = swift_runs.config(home, out, **{"max_steps": 3, "learning_rate": 0.1, **SPLIT, **changes})
    loss = {"name": "dft", "nonfinite": how}
    run = swift_runs.train(config, loss, lambda made: seen.append(spoiled_runs.at_step(made, 2)))
    return run, seen[0]


@pytest.mark.parametrize("changes", [{}, swift_runs.LORA], ids=["full", "lora"])
def test_a_step_is_left_out(changes, home, tmp_path):
    run, history = train(home, tmp_path / "out", "skip", **changes)
    spoiled_runs.require_left_out(run.trainer, history)


def test_an_error_names_the_step(home, tmp_path):
    with pytest.raises(NonFiniteError, match=r"step 2, micro-batch 1 of 2: not finite was first log p"):
        train(home, tmp_path / "out", "error")
