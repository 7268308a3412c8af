"""Starts the parts one after the other, and writes the page after each."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.gpu.part import PARTS
from benchmarks.gpu.sheet import Options, read

LAST_WORDS = 25
"""Lines of a part's output that the page shows."""

LONGEST = 400
"""Characters of a kept line."""

WORTH_KEEPING = re.compile(r"warn|^dft:", re.IGNORECASE)
"""Lines that the page shows of a part that ended well: warnings, and what the plugin says."""

MEANWHILE = 5.0
"""Seconds between two pages while a part runs."""

ENOUGH = 5.0
"""Seconds without which no part is started."""

KEPT_BACK = 20.0
"""Seconds that others leave to the last part, which compares what they found."""


@dataclass(frozen=True)
class End:
    """How a part ended.

    Attributes:
        how: empty: well.
        title: of the words; empty: there are none.
        words: of its output.
    """

    how: str
    title: str = ""
    words: Sequence[str] = ()

    @property
    def lines(self) -> list[str]:
        """For the page."""
        said = "; ".join(part for part in (self.how, self.title) if part)
        shown = ["```", *self.words, "```", ""] if self.title else []
        return [*([f"**{said}{':' if self.title else ''}**", ""] if said else []), *shown]

    @property
    def line(self) -> str:
        """For the console."""
        return f"{self.how or 'done'}{f' ({self.title}: on the page)' if self.title else ''}"


@dataclass
class Page:
    """The result: one file.

    Attributes:
        path: of the file.
        options: what it was measured on.
        command: that makes such a page again.
        ends: how each part ended.
        took: seconds of each part.
    """

    path: Path
    options: Options
    command: str
    ends: dict[str, End] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)

    def write(self) -> None:
        """Write all that is known by now."""
        lines = ["# The first hour on a GPU", ""]
        if self.options.small:
            lines += ["Small: made in order to test the benchmark; the numbers mean nothing.", ""]
        lines += [f"Made by `{self.command}`, {sum(self.took.values()):.0f} s.", ""]
        numbers = {}
        for name in self.ends:
            sheet = read(self.options.sheet(name))
            numbers[name] = sheet["numbers"]
            lines += [f"## {PARTS[name].title}", "", *sheet["lines"], ""]
            lines += self.ends[name].lines
            lines += [f"({name}: {self.took[name]:.0f} s)", ""]
        lines += ["## Numbers", "", "```json", json.dumps(numbers), "```"]
        self.path.write_text("\n".join(lines) + "\n")


def new_page(path: Path) -> Path:
    """Make an empty file and return its path: `gpu.md`, or `gpu-2.md` where that is there, and so on.

    A measurement is never written over, and two that run at a time do not share a page.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number, found = 1, path
    while True:
        try:
            found.touch(exist_ok=False)
        except FileExistsError:
            number += 1
            found = path.with_stem(f"{path.stem}-{number}")
        else:
            return found


def take(
    options: Options, names: Sequence[str], path: Path, minutes: float, say: Callable[[str], None]
) -> dict[str, str]:
    """Run the parts, and write what they found.

    Args:
        options: device and sizes.
        names: of the parts.
        path: of the page, which is written over; its folder is there.
        minutes: for all of them; what has no time left is named.
        say: is told of each part.

    Returns:
        How each part ended; empty: well.
    """
    page = Page(path, options, _command(options, names, minutes))
    deadline = time.monotonic() + 60 * minutes
    for name in names:
        started = time.monotonic()
        left = deadline - started - (KEPT_BACK if name != names[-1] else 0)
        if left < ENOUGH:
            page.ends[name] = End("not run: no time was left")
        else:
            limit = min(left, 60 * PARTS[name].minutes)
            page.ends[name], page.took[name] = End("not ended yet"), 0.0
            page.ends[name] = _run(name, options, limit, page.write)
        page.took[name] = time.monotonic() - started
        page.write()
        say(f"{name}: {page.took[name]:.0f} s: {page.ends[name].line}")
    return {name: end.how for name, end in page.ends.items()}


def _command(options: Options, names: Sequence[str], minutes: float) -> str:
    words = ["python", "-m", "benchmarks", "gpu", "--device", options.device]
    words += ["--small"] if options.small else []
    for name in names if list(names) != list(PARTS) else ():
        words += ["--part", name]
    return shlex.join([*words, "--minutes", f"{minutes:g}"])


def one_card(device: str, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the device as a part is to name it, and the environment in which it is the only card.

    With several in sight, the Trainer would spread a batch over all of them (`nn.DataParallel`).

    Args:
        device: `cpu`, `cuda` (the first card in sight) or `cuda:N`.
        environment: of this process.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return device, dict(environment)
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    number = int(index or 0)
    return kind, {**environment, "CUDA_VISIBLE_DEVICES": visible[number] if visible else str(number)}


def _run(name: str, options: Options, limit: float, meanwhile: Callable[[], None]) -> End:
    """Run a part."""
    device, environment = one_card(options.device, os.environ)
    given = json.dumps(asdict(replace(options, device=device)))
    command = [sys.executable, "-m", "benchmarks.gpu.part", name, given]
    # A file, not a pipe: children that outlive their parent would hold a pipe open.
    with tempfile.TemporaryFile("w+") as log:
        with _signals_raised():
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=environment
            )
            try:
                code = _wait(process, limit, meanwhile)
            finally:
                # Its children too, if any are left.
                _end(process)
        log.seek(0)
        return _end_of(code, limit, read(options.sheet(name)), log.read().strip().splitlines())


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """Let what ends this program be an exception: a part has a session of its own, and would go on without it."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    # `nohup` ignores one of them.
    heard = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in heard:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)


def _end_of(code: int | None, limit: float, sheet: Mapping[str, Any], output: Sequence[str]) -> End:
    """Say how a part ended, by its exit code (None: at its limit), its sheet and its output."""
    if code is None:
        how = f"stopped at its limit of {limit:.0f} s, with what it had found"
    elif code:
        how = f"failed, exit code {code}"
    else:
        # The same warning comes from each of many calls.
        kept = list(dict.fromkeys(line[:LONGEST] for line in output if WORTH_KEEPING.search(line)))[-LAST_WORDS:]
        how = f"done, {sheet['failed']} of {sheet['rows']} rows failed" if sheet["failed"] else ""
        return End(how, "warnings and the plugin's own lines" if kept else "", kept)
    return End(how, "the end of its output" if output else "", output[-LAST_WORDS:])


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
