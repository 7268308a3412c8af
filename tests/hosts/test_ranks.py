"""Two processes (gloo) train what one does: weights, logs, evaluation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ranks, tiny

pytestmark = pytest.mark.host


def run(processes, host, kind, out, batch_size):
    out.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    script = [ranks.__file__, host, kind, str(out), str(batch_size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(Path(out) / "saved.pt", weights_only=False), done.stderr


@pytest.mark.parametrize(
    ("host", "kind"), [("transformers", "full"), ("transformers", "tied"), ("transformers", "lora"), ("trl", "lora")]
)
def test_two_processes_equal_one(host, kind, tmp_path):
    if host == "trl":
        pytest.importorskip("trl")
    one, _ = run(1, host, kind, tmp_path / "one", 4)
    two, err = run(2, host, kind, tmp_path / "two", 2)
    assert (one["world"], two["world"]) == (1, 2)
    assert tiny.max_gap(one["weights"], two["weights"]) < 1e-6
    for mine, theirs in zip(one["logs"], two["logs"], strict=True):
        for key in (key for key in mine if key == "loss" or key.startswith("dft/")):
            assert theirs[key] == pytest.approx(mine[key], rel=1e-5), key
    assert two["evaluated"]["eval_dft/nll"] == pytest.approx(one["evaluated"]["eval_dft/nll"], rel=1e-5)
    assert err.count("dft: loss dft") == 1, "one start-up line, not one for each rank"
    assert "replaces average_tokens_across_devices" in err
