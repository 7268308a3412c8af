"""The ranks of a run, started with the environment variables that people set for that. No torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence


def torchrun(
    environ: Mapping[str, str], module: str, words: Sequence[str], *, devices: int, port: str | int
) -> list[str]:
    """Return the command that starts a module on each rank.

    A list, not a string that is split: paths may hold spaces.

    Args:
        environ: NPROC_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR; or RDZV_ID with MIN_NNODES, MAX_NNODES, MAX_RESTARTS.
        module: what runs on each.
        words: its arguments.
        devices: how many ranks where nothing is said.
        port: where they meet.
    """
    nodes = environ.get("NNODES", "1")
    address = environ.get("MASTER_ADDR", "127.0.0.1")
    # As a module of this interpreter, so that the ranks run in this environment whatever PATH says.
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += ["--nproc-per-node", environ.get("NPROC_PER_NODE", str(max(devices, 1)))]
    if "RDZV_ID" in environ:
        if "MIN_NNODES" in environ and "MAX_NNODES" in environ:
            nodes = f"{environ['MIN_NNODES']}:{environ['MAX_NNODES']}"
        command += ["--nnodes", nodes, "--rdzv-id", environ["RDZV_ID"], "--rdzv-backend", "c10d"]
        command += ["--rdzv-endpoint", f"{address}:{port}", "--max-restarts", environ.get("MAX_RESTARTS", "0")]
    else:
        command += ["--nnodes", nodes, "--node-rank", environ.get("NODE_RANK", "0")]
        command += ["--master-addr", address, "--master-port", str(port)]
    return [*command, "-m", module, *words]


def run(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command, what was written by now before what it writes. Returns its exit code."""
    sys.stdout.flush()
    return subprocess.run(command, env=environ, check=False).returncode
