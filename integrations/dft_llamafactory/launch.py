"""`dft train` for LLaMA-Factory: its launcher, with our module in place of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dft_llamafactory.conflicts import uses_ray
from dft_plugin.config import handover, ranks
from dft_plugin.config.hosts import Launch
from dft_plugin.config.rules import is_on


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
    port = os.environ.get("MASTER_PORT") or find_available_port()
    command = ranks.torchrun(os.environ, "dft_llamafactory.run", words, devices=devices, port=port)
    return ranks.run(command, child_environment(os.environ))


def wants_torchrun(environ: Mapping[str, str], devices: int) -> bool:
    """Say whether ranks have to be started: asked for, or several devices and no Ray; not inside a rank."""
    asked = is_on(environ.get("FORCE_TORCHRUN", "0"))
    return "LOCAL_RANK" not in environ and (asked or (devices > 1 and not uses_ray(environ)))


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the ranks, with LLaMA-Factory's settings for DDP unless OPTIM_TORCH is off."""
    ddp = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "TORCH_NCCL_AVOID_RECORD_STREAMS": "1"}
    return {**environ, **(ddp if is_on(environ.get("OPTIM_TORCH", "1")) else {})}
