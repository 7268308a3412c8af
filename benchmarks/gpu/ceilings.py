"""What the card is, and how fast it multiplies and copies when it does nothing else."""

from __future__ import annotations

import subprocess
import time
from statistics import median
from typing import Any

import torch

from benchmarks import machine
from benchmarks.gpu.clock import seconds
from benchmarks.gpu.sheet import Options, Sheet
from dft_plugin.kernels.budget import free_bytes

ROUNDS = 9


def describe(options: Options, sheet: Sheet) -> None:
    """Write down device, versions and the two ceilings."""
    facts: dict[str, Any] = machine.facts(options.device)
    sheet.keep("facts", facts)
    sheet.say(f"{facts['device']}. Python {facts['python']}; " + _listed(facts["versions"]) + ".")
    if options.device == "cuda":
        size = torch.cuda.get_device_properties(0).total_memory >> 20
        sheet.say(f"Compute capability {torch.cuda.get_device_capability()}; {size:,} MiB; driver {_driver()}.")
        took = _asking()
        sheet.keep("free_bytes_us", took)
        sheet.say(f"Asking for the free memory, once for each loss: {took:.0f} microseconds.")
    flops, bandwidth = multiply(options), copy(options)
    sheet.keep("tflops", flops)
    sheet.keep("gb_per_s", bandwidth)
    sheet.say(
        "", f"Ceilings, medians of {ROUNDS}: a product in bfloat16 {flops:,.1f} TFLOP/s; a copy {bandwidth:,.0f} GB/s."
    )


def _asking() -> float:
    """Return the microseconds that `budget.free_bytes` takes while the device is at work."""
    device, busy = torch.device("cuda"), torch.randn(4096, 4096, device="cuda")
    for _ in range(20):
        busy = busy @ busy / 64
    started = time.perf_counter()
    for _ in range(ROUNDS):
        free_bytes(device)
    took = time.perf_counter() - started
    torch.cuda.synchronize()
    return took / ROUNDS * 1e6


def multiply(options: Options) -> float:
    """Return TFLOP/s of a square product of random bfloat16."""
    size = 256 if options.small else 8192
    left, right = (torch.randn(size, size, device=options.device).bfloat16() for _ in range(2))
    out = torch.empty_like(left)
    took = [seconds(lambda: torch.mm(left, right, out=out), options.device) for _ in range(ROUNDS + 2)][2:]
    return 2 * size**3 / median(took) / 1e12


def copy(options: Options) -> float:
    """Return GB/s of a copy, bytes read and bytes written."""
    source = torch.ones((1 << 22) if options.small else (1 << 30), dtype=torch.float32, device=options.device)
    target = torch.empty_like(source)
    took = [seconds(lambda: target.copy_(source), options.device) for _ in range(ROUNDS + 2)][2:]
    return 2 * source.nbytes / median(took) / 1e9


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        # A line for each card, and one driver for all.
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "not known"
