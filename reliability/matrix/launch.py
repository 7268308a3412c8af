"""Starts processes for cells, waits, and finds which cell hangs. No torch here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from reliability.matrix import names

Line = dict[str, Any]
Pair = tuple[names.Row, str]
LIMIT = 180
"""Seconds that one cell may take."""
ROOT = Path(__file__).parents[2]


class Launcher:
    """Runs cells and hands their lines on as they come.

    Args:
        folder: for what is passed between processes, and for the runs of one process, which are made once.
        tell: gets each line.
        mutation: what is broken in every rank; empty: nothing.
        limit: seconds for a cell.
        stock: whether a cell that differs is compared with the stock loss of one process, too.
        say: gets a word of what is started.
    """

    def __init__(
        self,
        folder: Path,
        tell: Callable[[Line], None],
        mutation: str = "",
        limit: int = LIMIT,
        stock: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder, self.tell, self.mutation, self.limit, self.say = folder, tell, mutation, limit, say
        self.stock = stock

    def run(self, pairs: Iterable[Pair], *, together: bool = False) -> None:
        """Run cells; those of one row in one start of processes.

        Args:
            pairs: which.
            together: whether rows of as many processes share a start.
        """
        pairs = list(pairs)
        self.say(f"{len(pairs)} cells; first one process trains what they are compared with")
        self._start(pairs, world=1, references=True)
        for group in _groups(pairs, together):
            self._run_group(group)

    def _run_group(self, queue: list[Pair]) -> None:
        world, nodes = queue[0][0].world, max(row.nodes for row, _ in queue)
        again: set[Pair] = set()
        while queue:
            names_of = ", ".join(dict.fromkeys(row.name for row, _ in queue))
            self.say(f"{len(queue)} cells of {names_of}: {world} processes, {nodes} node(s)")
            lines = self._start(queue, world, nodes)
            seen = {(names.row_named(line["row"]), line["column"]): line for line in lines}
            # What fails behind others in one process may fail because of them.
            retry = [
                pair
                for place, (pair, line) in enumerate(seen.items())
                if place and names.is_red(line) and pair not in again and not self.mutation
            ]
            again |= set(retry)
            for pair, line in seen.items():
                if pair not in retry:
                    self.tell({key: value for key, value in line.items() if key != "parted"})
            fresh = [pair for pair in queue if pair not in seen]
            if fresh and not (lines and lines[-1]["parted"]):
                row, column = fresh.pop(0)
                self.tell({"row": row.name, "column": column, **self._what_stopped()})
            queue = [*retry, *fresh]

    def _start(self, pairs: list[Pair], world: int, nodes: int = 1, references: bool = False) -> list[Line]:
        self.here = Path(tempfile.mkdtemp(dir=self.folder))
        work = {
            "cells": [(row.name, column) for row, column in pairs],
            "folder": str(self.here),
            "mutation": self.mutation,
            "limit": self.limit,
            "references": references,
            "stock": self.stock,
        }
        (self.here / "work.json").write_text(json.dumps(work))
        processes = _processes(self.here, world, nodes)
        self._wait(processes, until=time.monotonic() + 120 + 2 * self.limit * len(pairs))
        file = self.here / "lines.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def _wait(self, processes: list[subprocess.Popen[bytes]], until: float) -> None:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes) or time.monotonic() > until:
                # The others would wait for one that is gone.
                self._give_time(processes)
                for process in processes:
                    _kill(process)
            time.sleep(0.2)
        self.codes = [process.returncode for process in processes]

    def _give_time(self, processes: list[subprocess.Popen[bytes]]) -> None:
        until = time.monotonic() + 10
        while time.monotonic() < until and any(process.poll() is None for process in processes):
            time.sleep(0.1)

    def _what_stopped(self) -> Line:
        """Say what a start ended with that left a cell without a line: a hang, whose stacks are there, or a crash."""
        stacks = {file.name: file.read_text() for file in sorted(self.here.glob("stacks-*.txt"))}
        hung = {name: text for name, text in stacks.items() if "Timeout" in text}
        if hung:
            return {"outcome": names.HANGS, "text": f"nothing for {self.limit} s", "stacks": hung}
        every = [json.loads(file.read_text()) for file in sorted(self.here.glob("said/*.json"), key=_age)]
        if every and every[-1]["kind"] in (names.FAILED, names.REFUSED):
            return {"outcome": names.FAILED, "text": f"one rank alone: {every[-1]['text']}"}
        tails = [file.read_text()[-300:] for file in sorted(self.here.glob("*.log"))]
        return {"outcome": names.FAILED, "text": f"ended with {self.codes}: {' | '.join(tails)}"}


def _groups(pairs: list[Pair], together: bool) -> Iterator[list[Pair]]:
    def key(pair: Pair) -> Any:
        return pair[0].world if together else names.ROWS.index(pair[0])

    for _, group in groupby(sorted(pairs, key=key), key=key):
        yield list(group)


def _processes(folder: Path, world: int, nodes: int) -> list[subprocess.Popen[bytes]]:
    script = ["-m", "reliability.matrix.ranks", str(folder / "work.json")]
    if nodes == 1:
        port = str(_free_port())
        places = [
            {"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            for r in range(world)
        ]
        return [_process(folder / f"{r}.log", script, place) for r, place in enumerate(places)]
    meeting = f"127.0.0.1:{_free_port()}"
    agent = ["-m", "torch.distributed.run", "--nnodes", str(nodes), "--nproc-per-node", str(world // nodes)]
    agent += ["--rdzv-backend", "c10d", "--rdzv-endpoint", meeting, "--rdzv-id", "matrix"]
    return [_process(folder / f"agent-{node}.log", [*agent, *script], {}) for node in range(nodes)]


def _process(log: Path, words: list[str], place: dict[str, str]) -> subprocess.Popen[bytes]:
    paths = [ROOT, ROOT / "integrations", ROOT / "tests" / "lib"]
    environment = {
        **os.environ,
        **place,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "OMP_NUM_THREADS": "1",
        # DeepSpeed would look for MPI, and for another accelerator.
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with log.open("w") as out:
        return subprocess.Popen(
            [sys.executable, *words], stdout=out, stderr=out, env=environment, cwd=ROOT, start_new_session=True
        )


def _age(file: Path) -> float:
    return file.stat().st_mtime


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
