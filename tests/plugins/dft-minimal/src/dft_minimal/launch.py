"""`dft train` for minimal: one process, which is the host's own with our module in its place."""

import os
import sys

from dft_plugin.config import handover, ranks
from dft_plugin.config.hosts import Launch


def start(launch: Launch) -> int:
    """Start it. Returns the exit code."""
    words = [*handover.words(launch.settings), launch.config_path]
    words += [f"{key}={text}" for key, text in launch.overrides]
    return ranks.run([sys.executable, "-m", "dft_minimal.run", *words], os.environ)
