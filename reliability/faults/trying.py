"""One fault, tried: the straight run, the one that comes to harm, and the one that goes on from what is left."""

from __future__ import annotations

import math
import os
import random
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from reliability.faults import cells, hosts, victim
from reliability.faults.cells import Cell
from reliability.faults.victim import ROOT, Order

Row = dict[str, Any]

PLACES = ("forward", "optimizer", "saved")

READ = ("loss", "grad_norm", "learning_rate", "train/loss", "train/grad_norm", "train/lr")
"""Of a log, what is compared besides `dft/*`."""

TOO_LARGE = ("File too large", "inline_container.cc")
"""What the system says where a file may not grow, and `torch.save` in its place."""

VERL = "global_step_"
NAMES = ("checkpoint-", VERL)
"""With which the folders of checkpoints begin; a step follows."""

SAVED = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; of a signal the negative number.
        said: what it wrote to stderr.
        seconds: how long it took.
    """

    code: int
    said: str
    seconds: float


def tried(cell: Cell, place: Path, limit: float = 900.0) -> Row:
    """Try a fault.

    Args:
        cell: which.
        place: a folder for it; straight runs in it are used again.
        limit: seconds that a process may take.
    """
    pick = random.Random()
    harm = cell.harm
    if cell.drawn:
        harm = replace(harm, step=pick.randint(2, hosts.STEPS - 1), where=pick.choice(PLACES))
    straight = _straight(cell, place, limit)
    out = place / f"{cell.host}-{abs(hash(cell.key))}-{time.time_ns()}"
    order = _order(cell, place, out)
    spoiled = _run(replace(order, harm=harm), cell, limit, **cell.environment)
    row: Row = {
        "key": cell.key,
        "fault": cell.fault,
        "host": cell.host,
        "kind": cell.kind,
        "what": cell.what,
        "step": harm.step,
        "where": harm.where,
        "ended": [one.code for one in spoiled],
        "seconds": round(max(one.seconds for one in spoiled), 1),
        # What a signal has ended said nothing of it.
        "said": _last_line(spoiled[0].said).replace(str(place), "") if any(one.code > 0 for one in spoiled) else "",
    }
    there, cut_off = checkpoints(out)
    row |= {"whole": there, "cut_off": cut_off, "left_in_out": sorted(one for one in SAVED if (out / one).exists())}
    if not there:
        return {**row, "passed": False, "problem": "no checkpoint is whole"}
    resumed = _run(replace(order, resume=str(checkpoint_folders(out)[there[-1]])), cell, limit)
    if any(one.code for one in resumed):
        return {**row, "passed": False, "problem": _last_line(resumed[0].said)}
    gaps = compared(straight, torch.load(out / "end.pt", weights_only=False), there[-1])
    row |= gaps
    problem = wrong(cell, row)
    return {**row, "passed": problem is None, **({} if problem is None else {"problem": problem})}


def wrong(cell: Cell, row: Row) -> str | None:
    """Say what of a row is not as it must be."""
    if row["losses"] > 1e-6 or row["weights"] > 1e-6:
        return "the run that went on is another one"
    if cell.fault == cells.KILLED and row["ended"] != [-signal.SIGKILL]:
        return "it was not killed"
    if cell.fault == cells.DISK and (row["ended"] == [0] or not any(one in row["said"] for one in TOO_LARGE)):
        return "the host's error was not shown"
    if cell.fault == cells.RANK:
        if row["ended"][0] == 0:
            return "the other rank went on"
        if row["whole"][-1] >= cell.harm.step or row["left_in_out"]:
            return "something looks like a checkpoint of the step that failed"
    return None


def checkpoints(out: Path) -> tuple[list[int], list[int]]:
    """Return the steps of the checkpoints in a folder: those that are whole, and those that were cut off.

    transformers' trainer writes `trainer_state.json` last of what it needs to go on, verl the file that says which
    checkpoint is the latest.
    """
    found = checkpoint_folders(out)
    whole = [step for step, folder in found.items() if _is_whole(step, folder)]
    return whole, [step for step in found if step not in whole]


def checkpoint_folders(out: Path) -> dict[int, Path]:
    """Return the folders of checkpoints in a folder by their steps, in order."""
    found = {
        int(re.split("[-_]", one.name)[-1]): one for name in NAMES for one in out.glob(f"{name}*") if one.is_dir()
    }
    return dict(sorted(found.items()))


def _is_whole(step: int, folder: Path) -> bool:
    try:
        if folder.name.startswith(VERL):
            return int((folder.parent / "latest_checkpointed_iteration.txt").read_text()) >= step
        state = (folder / "trainer_state.json").read_text()
        return state.rstrip().endswith("}") and any((folder / one).exists() for one in SAVED)
    except (OSError, ValueError):
        return False


def compared(straight: Row, resumed: Row, whole: int) -> Row:
    """Return by how much the log and the weights of two runs differ at most.

    Args:
        straight: of the one that nothing happened to.
        resumed: of the one that went on, whose log may begin where it did so.
        whole: the step from which it went on.
    """
    gap = 0.0
    mine, theirs = ({entry["step"]: entry for entry in one["logs"]} for one in (straight, resumed))
    if list(mine) != [*range(1, hosts.STEPS + 1)] or not {*range(whole + 1, hosts.STEPS + 1)} <= {*theirs} <= {*mine}:
        # It trained another number of steps.
        return {"losses": math.inf, "weights": math.inf}
    for step, entry in theirs.items():
        for key, value in mine[step].items():
            if key in READ or key.startswith("dft/"):
                gap = max(gap, abs(value - entry[key]) / max(1.0, abs(value)))
    weights = max(float((straight["weights"][name] - one).abs().max()) for name, one in resumed["weights"].items())
    return {"losses": gap, "weights": weights}


def _straight(cell: Cell, place: Path, limit: float) -> Row:
    out = place / f"straight-{cell.host}-{cell.kind}-{cell.ranks}-{_short(cell.loss)}"
    if not (out / "end.pt").is_file():
        ended = _run(_order(cell, place, out), cell, limit)
        if any(one.code for one in ended):
            raise RuntimeError(f"the straight run of {cell.key} failed:\n{ended[0].said[-3000:]}")
    found: Row = torch.load(out / "end.pt", weights_only=False)
    return found


def _short(loss: Any) -> str:
    return "-".join(str(loss[key]) for key in ("name", "reference") if key in loss)


def _order(cell: Cell, place: Path, out: Path) -> Order:
    folder = place / f"home-{cell.host}"
    folder.mkdir(parents=True, exist_ok=True)
    return Order(cell.host, cell.kind, cell.loss, str(folder), str(out))


def _run(order: Order, cell: Cell, limit: float, **environment: str) -> list[Ended]:
    """Start the ranks of a run by hand, since a launcher would end the others; wait for them."""
    shared = {"OMP_NUM_THREADS": "1", **environment}
    if cell.ranks > 1:
        shared |= {"WORLD_SIZE": str(cell.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    Path(order.out).mkdir(parents=True, exist_ok=True)
    started, processes = time.monotonic(), []
    for rank in range(cell.ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if cell.ranks > 1 else {}
        processes.append(_forked(order, {**shared, **own}))
    heard = [_Heard(words) for _, words in processes]
    ended: list[Ended] = []
    for (process, _), one in zip(processes, heard, strict=True):
        # A rank that was stopped never ends by itself; the first one is the one that is asked about.
        left = max(limit - (time.monotonic() - started), 1.0) if not ended else 30.0
        code = _waited(process, left)
        ended.append(Ended(code, one.said(), time.monotonic() - started))
    return ended


class _Heard(threading.Thread):
    """Hears what a process writes: through a pipe, since a file may not grow where the disk is full.

    Args:
        words: the end of the pipe that is read.
    """

    def __init__(self, words: int) -> None:
        super().__init__(daemon=True)
        self._words, self._heard = words, b""
        self.start()

    def run(self) -> None:
        with os.fdopen(self._words, "rb") as pipe:
            self._heard = pipe.read()

    def said(self) -> str:
        # What a process has started may hold the pipe for longer than it lives.
        self.join(10.0)
        return self._heard.decode(errors="replace")


def _forked(order: Order, environment: Mapping[str, str]) -> tuple[int, int]:
    """Start a process that has imported the host already, which takes longer than to train.

    Returns:
        Its number, and the end of a pipe in which it writes.
    """
    hosts.load(order.host)
    sys.stdout.flush()
    reads, writes = os.pipe()
    number = os.fork()
    if number:
        os.close(writes)
        return number, reads
    code = 1
    try:
        # A stopped process in the group of a job whose shell has ended ends all of that job.
        os.setsid()
        os.dup2(writes, 1)
        os.dup2(writes, 2)
        os.environ.update(environment)
        os.chdir(ROOT)
        victim.main(order)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _waited(process: int, seconds: float) -> int:
    """Wait for a process, and end it where it takes longer; return its exit code, of a signal the negative number."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        number, status = os.waitpid(process, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _last_line(said: str) -> str:
    """Return the last line that names an error, or the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    return (errors or lines or [""])[-1][:200]
