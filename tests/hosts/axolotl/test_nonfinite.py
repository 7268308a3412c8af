"""Axolotl: a step whose loss is no finite number is left out, or stops the run."""

from __future__ import annotations

import pytest

pytest.importorskip("axolotl")

from support import axolotl_runs, spoiled_runs

from dft_plugin.errors import NonFiniteError

pytestmark = pytest.mark.host

SPLIT = {"micro_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 0.1}


def train(home, how, **changes):
    from axolotl.train import execute_training

    loss = {"name": "dft", "nonfinite": how}
    cfg, trainer = axolotl_runs.prepare(axolotl_runs.write_config(home, loss=loss, **SPLIT, **changes))
    history = spoiled_runs.at_step(trainer, 2)
    execute_training(cfg, trainer, None)
    return trainer, history


@pytest.mark.parametrize("changes", [{}, axolotl_runs.LORA], ids=["full", "lora"])
def test_a_step_is_left_out(changes, home):
    spoiled_runs.require_left_out(*train(home, "skip", **changes))


def test_an_error_names_the_step(home):
    with pytest.raises(NonFiniteError, match=r"step 2, micro-batch 1 of 2: not finite was first log p"):
        train(home, "error")
