"""On what it was measured: processor and versions, nothing that names a host or a person."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = (
    *("torch", "transformers", "peft", "trl", "llamafactory", "ms-swift", "liger-kernel", "cut-cross-entropy"),
    *("dft-plugin", "triton", "bitsandbytes", "quack-kernels"),
)
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")


def facts(device: str) -> dict[str, object]:
    """Return what a reader needs in order to compare."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := version(name))},
    }


def version(package: str) -> str | None:
    """Return the installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    known = {key.strip(): value.strip() for key, value in lines.items()}
    flags = known.get("flags", "").split()
    listed = ", ".join(f"{flag} {'yes' if flag in flags else 'no'}" for flag in FLAGS)
    used = f"{os.cpu_count()} core(s), {torch.get_num_threads()} thread(s) used"
    return f"{known.get('model name', platform.machine())}, {used}; {listed}"
