"""`dft train` for verl: its own SFT trainer, which honours `loss:` by itself, started by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dft_plugin.config.hosts import Launch
from dft_plugin.config.reading import load
from dft_plugin.config.rules import look_up
from dft_plugin.errors import ConflictError
from dft_verl.resolving import resolved

_MODULE = "verl.trainer.sft_trainer"
_SEARCHED = "hydra.searchpath"


def start(launch: Launch) -> int:
    """Run verl's SFT trainer on each GPU of this machine that the config asks for. Returns the exit code.

    Raises:
        ConflictError: it asks for several machines, or does not say for how many.
    """
    path = Path(launch.config_path).absolute()
    overrides = [f"{key}={text}" for key, text in launch.overrides]
    config = resolved(load(path, overrides).host)
    command = words(path, load(path).loss is not None, config, launch)
    sys.stdout.flush()
    return subprocess.run(command, check=False).returncode


def words(path: Path, has_loss: bool, config: Mapping[str, Any], launch: Launch) -> list[str]:
    """Return the command.

    Args:
        path: of the config.
        has_loss: whether `loss` stands in the file, and not in overrides only.
        config: its keys, with overrides.
        launch: overrides, and the loss as it came of them.
    """
    if _number(config, "trainer.nnodes") > 1:
        raise ConflictError(
            [
                "`trainer.nnodes`: `dft train` starts the ranks of one machine. Start torchrun on each, as without "
                f"dft-plugin: `torchrun ... -m {_MODULE} --config-path {path.parent} --config-name {path.stem}`; verl "
                "honours `loss` by itself."
            ]
        )
    ranks = [] if "LOCAL_RANK" in os.environ else _torchrun(_number(config, "trainer.n_gpus_per_node"))
    searched = [] if look_up(config, _SEARCHED) else [f"{_SEARCHED}=[pkg://verl.trainer.config]"]
    given = [f"{key}={text}" for key, text in launch.overrides]
    # Not merged into what stands there, of which an option may have gone.
    loss = [*(["~loss"] if has_loss else []), f"+loss={in_hydra(launch.settings.as_written())}"]
    place = ["--config-path", str(path.parent), "--config-name", path.stem]
    return [sys.executable, *ranks, "-m", _MODULE, *place, *searched, *given, *loss]


def _number(config: Mapping[str, Any], key: str) -> int:
    """Return how many of something a config asks for; verl's own says 1."""
    given = look_up(config, key)
    try:
        return int(given or 1)
    except (TypeError, ValueError) as error:
        said = f"`{key}: {given}`: a number is needed before anything is started. Add `{key}=N` to the command."
        raise ConflictError([said]) from error


def _torchrun(ranks: int) -> Sequence[str]:
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]


def in_hydra(value: Any) -> str:
    """Write a value in the grammar of hydra's overrides: keys without quotes, texts in quotes."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{in_hydra(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(in_hydra, value)) + "]"
    return json.dumps(value)
