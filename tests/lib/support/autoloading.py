"""Autoload in the environment that the tests run in, as its owner left it afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dft_plugin import autoload


@contextmanager
def enabled() -> Iterator[None]:
    """Have what `dft autoload enable` does; a user's own file is put back."""
    path = autoload.pth_path()
    before = path.read_text() if path.is_file() else None
    command = [sys.executable, "-m", "dft_plugin", "autoload", "enable"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        autoload.disable()
        if before is not None:
            path.write_text(before)
