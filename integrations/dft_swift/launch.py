"""`dft train` for ms-swift: its launcher, with our module in place of its own."""

from __future__ import annotations

import subprocess
import sys

from dft_plugin.config import handover
from dft_plugin.config.hosts import Launch
from dft_swift import arguments


def start(launch: Launch) -> int:
    """Run `dft_swift.run` where `swift sft` would run its own file. Returns the exit code."""
    from swift.cli.main import get_torchrun_args, parse_yaml_args

    words = [launch.config_path]
    # Sets the variables of `ENV:`, too, which say how many processes there are.
    parse_yaml_args(words)
    _, words = arguments.take(words)
    for key, text in launch.overrides:
        words += arguments.words_of(key, text)
    ranks = get_torchrun_args()
    command = [sys.executable, *([] if ranks is None else ["-m", "torch.distributed.run", *ranks])]
    command += ["-m", "dft_swift.run", *handover.words(launch.settings), *words]
    sys.stdout.flush()
    return subprocess.run(command, check=False).returncode
