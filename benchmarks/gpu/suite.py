"""The tests marked `gpu`."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.gpu.sheet import Options, Sheet

SHOWN = 60
"""Lines of the end of pytest's output."""

SEEN = {"COLUMNS": "150", "PYTHONUNBUFFERED": "1"}
"""So that lines come whole, and when they are printed."""

NONE_FOUND = 5
"""Pytest's exit code where no test was selected."""


def run(options: Options, sheet: Sheet) -> None:
    """Run them; without a GPU only list them."""
    # -W: a newer torch on that machine may warn of things that are nobody's failure; they are shown.
    words = ["-m", "gpu", "-v", "-p", "no:cacheprovider", "-W", "default", "--durations=5", "tests"]
    head: list[str] = []
    if options.device == "cpu":
        head = ["Not run: they need a GPU. What `pytest -m gpu` selects:", ""]
        words = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "--collect-only", "tests"]
    if options.small:
        words[-1] = "tests/kernels_"
    command = [sys.executable, "-m", "pytest", *words]
    # Line by line: a test that hangs is named by what came before it.
    done = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **SEEN}
    )
    assert done.stdout is not None
    lines: list[str] = []
    for line in done.stdout:
        lines.append(line.rstrip())
        sheet.lines = [*head, "```", *lines[-SHOWN:], "```"]
        sheet.keep("last", lines[-1])
    code = done.wait()
    sheet.keep("exit code", code)
    if code == NONE_FOUND:
        sheet.say("", "There is no test marked `gpu` here.")
    elif code:
        raise SystemExit(f"pytest ended with exit code {code}")
