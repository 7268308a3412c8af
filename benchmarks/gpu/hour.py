"""Starts the parts one after the other, and writes the page after each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.gpu.part import PARTS
from benchmarks.gpu.sheet import Options, read

LAST_WORDS = 25
"""Lines of a failed part's output that the page shows."""

MEANWHILE = 5.0
"""Seconds between two pages while a part runs."""

ENOUGH = 5.0
"""Seconds without which no part is started."""

KEPT_BACK = 20.0
"""Seconds that others leave to the last part, which compares what they found."""


@dataclass
class Page:
    """The result: one file.

    Attributes:
        path: of the file.
        options: what it was measured on.
        ends: how each part ended; empty: well.
        words: the last of the output of a part that failed.
        took: seconds of each part.
    """

    path: Path
    options: Options
    ends: dict[str, str] = field(default_factory=dict)
    words: dict[str, list[str]] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)

    def write(self) -> None:
        """Write all that is known by now."""
        lines = ["# The first hour on a GPU", ""]
        if self.options.small:
            lines += ["Small: made in order to test the benchmark; the numbers mean nothing.", ""]
        lines += [
            f"Made by `python -m benchmarks gpu --device {self.options.device}`, {sum(self.took.values()):.0f} s.",
            "",
        ]
        numbers = {}
        for name in self.ends:
            sheet = read(self.options.sheet(name))
            numbers[name] = sheet["numbers"]
            lines += [f"## {PARTS[name].title}", "", *sheet["lines"], ""]
            lines += [f"**{self.ends[name]}**", ""] if self.ends[name] else []
            lines += ["```", *self.words[name], "```", ""] if self.words.get(name) else []
            lines += [f"({name}: {self.took[name]:.0f} s)", ""]
        lines += ["## Numbers", "", "```json", json.dumps(numbers), "```"]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n".join(lines) + "\n")


def take(
    options: Options, names: Sequence[str], path: Path, minutes: float, say: Callable[[str], None]
) -> dict[str, str]:
    """Run the parts, and write what they found.

    Args:
        options: device and sizes.
        names: of the parts.
        path: of the page.
        minutes: for all of them; what has no time left is named.
        say: is told of each part.

    Returns:
        How each part ended; empty: well.
    """
    page = Page(path, options)
    deadline = time.monotonic() + 60 * minutes
    for name in names:
        started = time.monotonic()
        left = deadline - started - (KEPT_BACK if name != names[-1] else 0)
        if left < ENOUGH:
            page.ends[name] = "not run: no time was left"
        else:
            limit = min(left, 60 * PARTS[name].minutes)
            page.ends[name], page.took[name] = "not ended yet", 0.0
            page.ends[name], page.words[name] = _run(name, options, limit, page.write)
        page.took[name] = time.monotonic() - started
        page.write()
        say(f"{name}: {page.took[name]:.0f} s: {page.ends[name] or 'done'}")
    return page.ends


def _run(name: str, options: Options, limit: float, meanwhile: Callable[[], None]) -> tuple[str, list[str]]:
    """Run a part; returns how it ended, empty if well, and the last of what it printed."""
    command = [sys.executable, "-m", "benchmarks.gpu.part", name, json.dumps(asdict(options))]
    # A file, not a pipe: children that outlive their parent would hold a pipe open.
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            code = _wait(process, limit, meanwhile)
        finally:
            # Its children too, if any are left.
            _end(process)
        end = ""
        if code is None:
            end = f"stopped at its limit of {limit:.0f} s; above is what it had found, below the end of its output:"
        elif code:
            end = f"failed, exit code {code}; the end of its output:"
        log.seek(0)
        return end, log.read().strip().splitlines()[-LAST_WORDS:] if end else []


def _wait(process: subprocess.Popen[str], limit: float, meanwhile: Callable[[], None]) -> int | None:
    """Return the exit code, or None if the limit passes."""
    deadline = time.monotonic() + limit
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(left, MEANWHILE))
        # Whoever ends this program without a word finds what there was some seconds before.
        meanwhile()
    return None


def _end(process: subprocess.Popen[str]) -> None:
    """End a part with its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
