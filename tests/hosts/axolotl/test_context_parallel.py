"""Axolotl's context parallelism (0.21, package ringmaster): two ranks that share each sequence, and one process."""

from __future__ import annotations

import pytest

pytest.importorskip("axolotl")
pytest.importorskip("ringmaster")

import torch
from axolotl.cli.config import load_cfg
from support import tiny
from support.axolotl_runs import FSDP2, PACKED, PLUGIN, TWO_RANKS, command, since, train, write_config

pytestmark = [pytest.mark.host, since("0.21")]

# Of the ways to attend, the one that trains on a CPU; and FSDP2, since accelerate's DDP wants a GPU for it.
ULYSSES = {"context_parallel_size": 2, "context_parallel": {"backend": "ulysses"}, **FSDP2}
NESTED = {"context_parallel": {"size": 2, "backend": "ulysses"}, **FSDP2}
CASES = {
    # Micro-batches of different lengths.
    "accumulated": ({"micro_batch_size": 2, "gradient_accumulation_steps": 2}, ULYSSES),
    "packed": (PACKED, NESTED),
}


@pytest.mark.parametrize(
    "case", [pytest.param("accumulated", marks=pytest.mark.newest), pytest.param("packed", marks=pytest.mark.full)]
)
def test_two_ranks_train_what_one_process_does(case, home):
    changes, split = CASES[case]
    one = train(write_config(home, "one.yml", max_steps=2, **changes))
    write_config(home, max_steps=2, plugins=[PLUGIN, "cpu_mesh.CpuMesh"], **changes, **split)
    done = command(home, "axolotl", "train", "config.yml", "--launcher", "torchrun", *TWO_RANKS)
    assert done.returncode == 0, done.stderr
    assert "ringmaster CP enabled: size=2" in done.stdout + done.stderr
    trained = torch.load(home / "trained.pt")
    logs = [entry for entry in trained["logs"] if "loss" in entry]
    for mine, theirs in zip(logs, one.logs, strict=True):
        for key in ("loss", "dft/nll", "dft/tokens", "dft/effective_tokens"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5), key
    assert tiny.max_gap(trained["weights"], one.weights) < 1e-6


@pytest.mark.newest
@pytest.mark.parametrize(
    "split", [{"context_parallel_size": 2}, {"context_parallel": {"size": 2}}], ids=["flat", "nested"]
)
def test_with_deepspeed_it_is_refused(split, home):
    with pytest.raises(ValueError, match=r"context parallelism \(2\) is DeepSpeed's with `deepspeed:`"):
        load_cfg(str(write_config(home, deepspeed="zero1.json", **split)))
