"""Time and memory of a step, on CUDA by events and the allocator, on a CPU by the clock and the resident set."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import torch

from benchmarks import memory
from benchmarks.problem import MIB


def wait(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(step: Callable[[], object], device: str) -> float:
    """Time exactly one call, begun on an idle device: what Python takes to launch it counts, as in a training step."""
    wait(device)
    if device != "cuda":
        started = time.perf_counter()
        step()
        return time.perf_counter() - started
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def extra_mb(step: Callable[[], object], device: str) -> float:
    """Return the peak of the memory that one call needs beyond what is in use before it, in MiB."""
    before = memory.start(device)
    step()
    wait(device)
    return (memory.peak(device) - before) / MIB


def forget(device: str) -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def milliseconds(value: float) -> str:
    """Print seconds."""
    return f"{value * 1000:.2f}" if value < 0.1 else f"{value * 1000:.0f}"
