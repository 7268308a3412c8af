"""`dft train` for TRL: TRL's own `sft` script through accelerate, as `trl sft` does, with our module in its place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from accelerate.commands.launch import launch_command, launch_command_parser
from trl.cli.accelerate_config import resolve_accelerate_config_argument
from trl.scripts.sft import make_parser

from dft_plugin.config import handover
from dft_plugin.config.hosts import Launch
from dft_plugin.config.overrides import parted

_YES_OR_NO = ("true", "false")


def start(launch: Launch) -> int:
    """Start accelerate, with what TRL does not know as its arguments. Returns the exit code."""
    script_args = ["--config", launch.config_path]
    words = {f"--{key}={text}": (key, text) for key, text in launch.overrides}
    with handover.read_by_us(yaml):
        *_, from_config, from_overrides = make_parser(prog="trl sft").parse_args_and_config(
            [*script_args, *words], return_remaining_strings=True, separate_remaining_strings=True
        )
    # TRL's parser does not know our key, and accelerate would not either.
    launch_args = [word for one in parted(from_config)[1] for word in one.words]
    for word, (key, text) in words.items():
        if word in from_overrides:
            launch_args += [f"--{key}", text]
        else:
            script_args.append(word)
    launch_args = resolve_accelerate_config_argument(as_flags(launch_args))
    script = Path(__file__).with_name("run.py")
    arguments = [*launch_args, str(script), *handover.words(launch.settings), *script_args]
    sys.stdout.flush()
    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except subprocess.CalledProcessError as error:
        # The run has said why; a traceback of its launcher would bury it.
        return error.returncode
    return 0


def as_flags(words: Sequence[str]) -> list[str]:
    """Write `--cpu true` as accelerate wants it, `--cpu`: it has options that take no value. False leaves them out."""
    flags = {
        name for action in launch_command_parser()._actions if action.nargs == 0 for name in action.option_strings
    }
    found: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        given = left[0].lower() if word in flags and left else None
        if given in _YES_OR_NO:
            left.pop(0)
        if given != "false":
            found.append(word)
    return found


def known_keys() -> frozenset[str]:
    """Return what `trl sft` takes: keys of its script, and of accelerate."""
    parsers = make_parser(prog="trl sft"), launch_command_parser()
    return frozenset(action.dest for parser in parsers for action in parser._actions) | {"accelerate_config", "env"}
