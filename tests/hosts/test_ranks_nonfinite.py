"""Two processes (gloo), of which one has a loss that is no finite number: both do the same."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from support import ranks_nonfinite, spoiled_runs, tiny

pytestmark = pytest.mark.host

FIRST = (
    "step 2, micro-batch 2 of 2, rank 1 of 2: not finite was first log p of a target (dft/nll), in row 0 of that batch"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each rank has seen, by what becomes of such a step."""
    out = tmp_path_factory.mktemp("ranks")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run(
        [*launcher, ranks_nonfinite.__file__, str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(out / f"saved{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_one_of_them_warns_and_names_the_rank(found):
    first, second = (each["warn"] for each in found)
    (said,) = first["said"]
    assert FIRST in said
    assert second["said"] == []
    assert first["step"] == second["step"] == 3


def test_both_stop_with_the_same_error_and_no_weight_moved(found):
    for each in (rank["error"] for rank in found):
        assert FIRST in each["error"]
        assert each["step"] == 1
        # Before the run, after its first step, and as it was left.
        assert len(each["weights"]) == 3
        assert tiny.max_gap(each["weights"][1], each["weights"][2]) == 0
    assert found[0]["error"]["error"] == found[1]["error"]["error"]


def test_both_leave_the_step_out_and_go_on_alike(found):
    first, second = (each["skip"] for each in found)
    for each in (first, second):
        assert each["step"] == 3
        assert tiny.max_gap(each["weights"][1], each["weights"][2]) == 0
        assert all(bool(w.isfinite().all()) for w in each["weights"][-1].values())
        assert tiny.max_gap(each["weights"][2], each["weights"][3]) > 0
    assert tiny.max_gap(first["weights"][-1], second["weights"][-1]) == 0
    assert [entry["dft/skipped"] for entry in first["logs"]] == [0, 1, 0]
    assert FIRST in first["said"][0]
    assert second["said"] == []


def test_the_row_is_in_the_second_half_of_the_second_step():
    assert spoiled_runs.rows(ranks_nonfinite.BAD)[7]["input_ids"][0] == spoiled_runs.BAD
