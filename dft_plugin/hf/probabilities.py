"""How many targets were how likely, as a run goes on: `dft_probabilities.jsonl` in its output folder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dft_plugin.config.record import write_whole
from dft_plugin.core.bands import EDGES
from dft_plugin.core.stats import LossStats
from dft_plugin.runs.probabilities import FILE, FORMAT, TRAINING
from dft_plugin.saying import spared

logger = logging.getLogger(__name__)

_HELD = 64
"""Evaluations before a training that are kept until it begins; the first of them are the ones before anything else."""


class Probabilities:
    """Writes the counts of the first and the last logged interval of a training, and of each evaluation.

    Nothing is written before a training begins: who only evaluates, in the folder of a run that is over, adds nothing
    to what the run says of itself.

    Args:
        where: returns the output folder of the run; None where this process writes nothing.
    """

    def __init__(self, where: Callable[[], str | os.PathLike[str] | None]) -> None:
        self._where = where
        self._held: list[dict[str, Any]] = []
        self._last: dict[str, Any] | None = None
        self._trains, self._anew, self._first = False, True, True

    def begin(self, *, resumed: bool) -> None:
        """Begin a run: a new one replaces what another has left in its folder, a resumed one goes on in it."""
        self._trains, self._anew, self._first, self._last = True, not resumed, True, None

    def add(self, of: str, stats: LossStats, step: int) -> None:
        """Add the targets of an evaluation, or of a training since its last log.

        Args:
            of: which of them: `training`, or the prefix of an evaluation's metrics.
            stats: of all ranks, on the CPU.
            step: how many steps were done.
        """
        if stats.counts_K is None:
            return
        # Where ranks hold copies, each has a part of the count.
        counts = [round(count) for count in stats.counts_K.tolist()]
        if not any(counts):
            return
        line = {"format": FORMAT, "of": of, "step": step, "edges": EDGES, "counts": counts}
        if of == TRAINING and not self._first:
            self._last = line
            return
        if of == TRAINING:
            self._first = False
        if self._trains:
            self._write([*self._held, line])
            self._held = []
        elif len(self._held) < _HELD:
            self._held.append(line)

    def end(self) -> None:
        """Write the last interval of a training that is over."""
        if self._last is not None:
            self._write([self._last])
        self._last = None

    def _write(self, lines: list[dict[str, Any]]) -> None:
        where = self._where()
        if where is None:
            return
        path = Path(where) / FILE
        text = "".join(json.dumps(line) + "\n" for line in lines)
        with spared(logger, path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._anew:
                write_whole(path, text)
            else:
                cut_off = path.is_file() and not path.read_bytes().endswith(b"\n")
                with path.open("a", encoding="utf-8", newline="") as file:
                    file.write("\n" * cut_off + text)
            self._anew = False
