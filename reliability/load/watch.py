"""What a process holds now: memory, files, objects of Python. Linux."""

from __future__ import annotations

import gc
import resource
import tracemalloc
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).parents[2] / "dft_plugin"
MIB = float(1 << 20)


def resident_mib() -> float:
    """Return the memory that this process has now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / MIB


def peak_mib() -> float:
    """Return the most that it ever had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def open_files() -> int:
    """Return how many files are open, with what asks for that."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def objects() -> int:
    """Return how many objects Python's collector knows, after a collection."""
    gc.collect()
    return len(gc.get_objects())


def ours_kib() -> float:
    """Return what lines of dft_plugin have allocated and still hold, in KiB; tracemalloc has to be on."""
    gc.collect()
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"{HERE}/*")])
    return sum(one.size for one in snapshot.statistics("filename")) / 1024


def held_by_lines(most: int = 5) -> list[str]:
    """Return the lines of dft_plugin that hold most, with how much, for whoever looks for a leak."""
    gc.collect()
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"{HERE}/*")])
    found = snapshot.statistics("lineno")[:most]
    return [f"{one.traceback[0].filename}:{one.traceback[0].lineno} {one.size / 1024:.1f} KiB" for one in found]


def hooks(model: nn.Module) -> list[str]:
    """List what hangs on a model's modules and parameters, on torch's modules at large, and its own `forward`."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    found = [
        f"{name or 'the model'}: {kind}"
        for name, module in model.named_modules()
        for kind in kinds
        if getattr(module, kind, None)
    ]
    found += [f"{name or 'the model'}: forward" for name, module in model.named_modules() if "forward" in vars(module)]
    found += [f"{name}: hooks of a parameter" for name, one in model.named_parameters() if one._backward_hooks]
    everywhere = torch.nn.modules.module
    found += [
        f"all modules: {kind}"
        for kind in ("_global_forward_hooks", "_global_forward_pre_hooks")
        if getattr(everywhere, kind)
    ]
    return found
