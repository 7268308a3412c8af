"""`dft train` for LLaMA-Factory: its launcher, with our module in place of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from dft_plugin.config import handover
from dft_plugin.config.hosts import Launch
from dft_plugin.config.rules import is_on

_MODULE = "dft_llamafactory.run"


def start(launch: Launch) -> int:
    """Run `dft_llamafactory.run` on each rank that LLaMA-Factory would start. Returns the exit code."""
    from llamafactory.extras.misc import find_available_port, get_device_count

    overrides = [f"{key}={text}" for key, text in launch.overrides]
    words = [*handover.words(launch.settings), launch.config_path, *overrides]
    devices = get_device_count()
    if not wants_torchrun(os.environ, devices):
        from dft_llamafactory.run import main

        main(words)
        return 0
    port = os.environ.get("MASTER_PORT") or str(find_available_port())
    command = torchrun(os.environ, devices, port, words)
    sys.stdout.flush()
    return subprocess.run(command, env=child_environment(os.environ), check=False).returncode


def wants_torchrun(environ: Mapping[str, str], devices: int) -> bool:
    """Say whether ranks have to be started: asked for, or several devices; not inside a rank."""
    return "LOCAL_RANK" not in environ and (is_on(environ.get("FORCE_TORCHRUN", "0")) or devices > 1)


def torchrun(environ: Mapping[str, str], devices: int, port: str, words: Sequence[str]) -> list[str]:
    """Return the command, from the variables that LLaMA-Factory's documentation names.

    A list, not a string that is split: paths may hold spaces.
    """
    nodes = environ.get("NNODES", "1")
    address = environ.get("MASTER_ADDR", "127.0.0.1")
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += ["--nproc-per-node", environ.get("NPROC_PER_NODE", str(max(devices, 1)))]
    if "RDZV_ID" in environ:
        if "MIN_NNODES" in environ and "MAX_NNODES" in environ:
            nodes = f"{environ['MIN_NNODES']}:{environ['MAX_NNODES']}"
        command += ["--nnodes", nodes, "--rdzv-id", environ["RDZV_ID"], "--rdzv-backend", "c10d"]
        command += ["--rdzv-endpoint", f"{address}:{port}", "--max-restarts", environ.get("MAX_RESTARTS", "0")]
    else:
        command += ["--nnodes", nodes, "--node-rank", environ.get("NODE_RANK", "0")]
        command += ["--master-addr", address, "--master-port", port]
    return [*command, "-m", _MODULE, *words]


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the ranks, with LLaMA-Factory's settings for DDP unless OPTIM_TORCH is off."""
    child = dict(environ)
    if is_on(environ.get("OPTIM_TORCH", "1")):
        child["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        child["TORCH_NCCL_AVOID_RECORD_STREAMS"] = "1"
    return child
