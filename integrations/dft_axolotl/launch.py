"""`dft train` for Axolotl: Axolotl's own command line, with our module in place of its last word.

`axolotl train` ends in `<launcher> -m axolotl.cli.train CONFIG`. We let it do everything up to there, and start
`-m dft_axolotl.run --dft-settings JSON CONFIG` instead.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import click
from accelerate.commands.launch import launch_command_parser
from axolotl.cli import main as command
from axolotl.cli.utils.train import _add_default_rdzv_args, build_command
from torch.distributed.run import get_args_parser

from dft_axolotl import run
from dft_plugin.config import handover
from dft_plugin.config.hosts import Launch
from dft_plugin.config.settings import Settings
from dft_plugin.errors import ConflictError, SettingsError

_LAUNCHERS = {
    # As modules of this interpreter, so that the ranks run in this environment whatever PATH says.
    "accelerate": [sys.executable, "-m", "accelerate.commands.launch"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
}


def start(launch: Launch) -> int:
    """Run `axolotl train CONFIG --key=value ...` with the loss active. Returns the exit code."""
    words = [word for key, text in launch.overrides for word in _option(key, text)]
    try:
        with handover.swapped(command, "launch_training", partial(_launch_training, launch.settings)):
            command.cli.main(["train", launch.config_path, *words], "axolotl", standalone_mode=False)
    except subprocess.CalledProcessError as error:
        return error.returncode
    except click.ClickException as error:
        raise SettingsError([f"axolotl train: {error.format_message()}"]) from error
    return 0


def known_keys() -> frozenset[str]:
    """Return what `axolotl train` takes: its own keys, and those of the launchers, to which it hands the others."""
    words = {word.lstrip("-").partition(".")[0] for one in command.train.params for word in one.opts}
    parsers = launch_command_parser(), get_args_parser()
    launchers = {action.dest for parser in parsers for action in parser._actions}
    return frozenset({word.replace("-", "_") for word in words} | launchers)


def _option(key: str, text: str) -> list[str]:
    """Write an override as Axolotl's command line wants it; what it does not know goes to the launcher."""
    option = f"--{key.replace('_', '-')}"
    for parameter in command.train.params:
        if option in parameter.opts:
            if not parameter.secondary_opts:
                return [f"{option}={text}"]
            return [option if text.lower() in ("true", "yes", "on", "1") else parameter.secondary_opts[0]]
    return [f"--{key}={text}"]


def _launch_training(
    settings: Settings,
    cfg_file: str,
    launcher: str | None,
    cloud: str | None,
    kwargs: dict[str, Any],
    launcher_args: list[str] | None = None,
    use_exec: bool = False,
) -> None:
    """Stand in for Axolotl's function of this name."""
    if cloud:
        raise ConflictError(
            ["`cloud`: the run starts on machines that have no dft-plugin. Start it there with `dft train`."]
        )
    if launcher is None or launcher == "python":
        run.train(settings.as_written(), cfg_file, **kwargs)
        return
    base = [*_LAUNCHERS[launcher], *_launcher_args(launcher, launcher_args or [])]
    base += ["-m", "dft_axolotl.run", *handover.words(settings), cfg_file]
    sys.stdout.flush()
    subprocess.run(build_command(base, kwargs), check=True)


def _launcher_args(launcher: str, words: list[str]) -> list[str]:
    completed: list[str] = _add_default_rdzv_args(words) if launcher == "torchrun" else words
    return completed
