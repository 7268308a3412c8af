"""Going through the runs that are left, one after the other; another process may do so, too."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from evidence.claims import claim
from evidence.grid import Grid
from evidence.offline.grid import OfflineGrid, OfflineRun
from evidence.probed import ProbeGrid, ProbeRun
from evidence.real.grid import RealGrid, RealProbe, RealRun
from evidence.rows import Row, Rows
from evidence.run import Run, Scale

RETRY_SECONDS = 20
"""Between two looks at runs that other processes are making."""

PAUSE_SECONDS = 5


@dataclass(frozen=True)
class Work:
    """What is done, and where.

    Attributes:
        grid: which runs.
        scale: how large.
        rows: where they end up.
        out: folder of base models and locks.
        part: only this one.
        pause_file: while it is there, nothing is computed.
        say: told of each run.
        failed: keys of runs that ended with an error; they are not tried again in this process.
    """

    grid: Grid | RealGrid | OfflineGrid | ProbeGrid
    scale: Scale
    rows: Rows
    out: Path
    part: str | None
    pause_file: Path | None
    say: Callable[[str], None]
    failed: set[str] = field(default_factory=set)

    def go_on(self, seconds: float) -> int:
        """Make runs until none is left, or the time is over; return how many were made, without those that failed.

        Args:
            seconds: after which no further run begins.
        """
        until, made = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            pending = [run for run in self.grid.pending(self.rows.all(), self.part) if run.key not in self.failed]
            if not pending:
                break
            # A run that another process makes may decide what comes next.
            if any(self._made(run) for run in pending):
                made += 1
            else:
                time.sleep(RETRY_SECONDS)
        return made - len(self.failed)

    def wait(self) -> None:
        """Return once the pause is over."""
        while self.pause_file is not None and self.pause_file.exists():
            time.sleep(PAUSE_SECONDS)

    def _made(self, run: Run | RealRun | RealProbe | OfflineRun | ProbeRun) -> bool:
        name = hashlib.sha256(run.key.encode()).hexdigest()[:24]
        with claim(self.out / "locks" / name) as mine:
            if not mine or run.key in self.rows.all():
                return False
            try:
                row = run.execute(self.scale, self.out / "bases", self.wait)
            except Exception as error:  # one run must not keep the others from being made
                self.failed.add(run.key)
                self.say(f"{run.key}: failed: {type(error).__name__}: {error}")
                return True
            self.rows.append(row, self.out / "locks" / f"{run.part}.rows")
        self.say(f"{run.key}: {_told(row)}, {row['seconds'][-1]:.0f} s")
        return True


def _told(row: Row) -> str:
    if "accuracy" not in row:
        return f"mean p {row['found']['mean_prob']:.2f}, own answers {row['found']['own_answers']:.3f}"
    return f"{row['accuracy']['taught@0']:.3f} / {row['accuracy']['taught@1']:.3f}"
