"""README's command trains, with no more than model, data and folder of its own, and what a CPU needs."""

from __future__ import annotations

import shlex

import pytest

pytest.importorskip("verl")

from support import oracle, readme, tiny
from support.verl_runs import DFT, ON, by_hand, command, logged, train, words

pytestmark = pytest.mark.host


def test_the_command_trains_dft(home):
    start, *given = shlex.split(readme.blocks()["verl"].replace("\\\n", " "))
    assert start == "torchrun"
    assert given[:4] == ["--standalone", "--nproc-per-node=8", "-m", "verl.trainer.sft_trainer"]
    # Of two words for one key hydra takes the last; 24 rows are no batch of 256.
    here = words(**{**DFT, "trainer.total_training_steps": 1, "data.micro_batch_size_per_gpu": 4})
    done = command(home, *given[4:], *(word for word in here if not word.startswith("+loss")), ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    assert ON in done.stderr
    expected = by_hand(tiny.llama(), train(*here).steps, oracle.dft)
    (entry,) = [entry for entry in logged(home) if "train/loss" in entry]
    assert entry["train/loss"] == pytest.approx(expected.losses[0], rel=1e-6)
