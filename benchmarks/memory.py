"""Peak memory of one step of one variant, in a process of its own."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case, cases
from benchmarks.problem import MIB, Shape


def _status(key: str) -> int:
    """Return a number of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/self/status: memory on a CPU is measured on Linux only")


def start(device: str) -> int:
    """Begin to watch; returns the bytes that are in use now."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # Writing 5 resets the high-water mark of the resident set.
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak(device: str) -> int:
    """Return the most bytes that were in use since `start`."""
    return torch.cuda.max_memory_allocated() if device != "cpu" else _status("VmHWM")


def extra_bytes(case: Case, variant: str, threads: int) -> int:
    """Run one step and return its peak over the resident inputs."""
    torch.set_num_threads(threads)
    (chosen,) = (candidate for candidate in case.variants if candidate.name == variant)
    function: Any = chosen.load()
    # Code and tables that a first call loads are not the step's.
    tiny = case.inputs(case.shape.small().fewer())
    tiny.prepare()
    function(tiny).backward()
    inputs = case.inputs(case.shape)
    inputs.prepare()
    before = start(case.shape.device)
    function(inputs).backward()
    return peak(case.shape.device) - before


def measure(case: Case, variant: str, shape: Shape, threads: int) -> dict[str, Any]:
    """Measure in a new process; `shape` is the one that all cases were made around.

    Returns:
        `bytes`: the extra memory; or `missing`, a reason.
    """
    words = [case.key, variant, json.dumps(asdict(shape)), str(threads)]
    done = subprocess.run([sys.executable, "-m", "benchmarks.memory", *words], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"missing": lines[-1][:200]}
    return {"bytes": int(done.stdout.split()[-1])}


def main() -> None:
    """Print the bytes."""
    key, variant, shape, threads = sys.argv[1:]
    case = cases(Shape(**json.loads(shape)))[key]
    bytes_used = extra_bytes(case, variant, int(threads))
    print(f"{bytes_used / MIB:.0f} MiB", file=sys.stderr)
    print(bytes_used)


if __name__ == "__main__":
    main()
