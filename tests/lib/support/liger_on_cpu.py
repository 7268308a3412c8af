"""A command, with the real Liger on a machine without GPU, and a count of what of Liger ran.

    TRITON_INTERPRET=1 python -m support.liger_on_cpu dft train sft.yaml

Triton's interpreter runs Liger's kernels as they are, but it has no libdevice, whose functions are empty there and
return None. Liger's RMSNorm needs one of them, `rsqrt`; it gets Triton's own.
"""

from __future__ import annotations

import atexit
import functools
import json
import sys
from collections import Counter
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import triton
import triton.language as tl
from triton.language.extra import libdevice

KERNELS = ("rms_norm", "rope", "swiglu", "fused_linear_cross_entropy")

calls: Counter[str] = Counter()


@triton.jit
def rsqrt(x):
    """Do what libdevice's does; compiled, since the interpreter reaches into compiled functions only."""
    return tl.rsqrt(x)


def count(module: Any, name: str) -> None:
    """Count the calls of a function of Liger."""
    plain = getattr(module, name)
    calls[name] = 0

    @functools.wraps(plain)
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return plain(*args, **kwargs)

    setattr(module, name, counted)


def main() -> None:
    """Run the command that the words name."""
    libdevice.rsqrt = rsqrt
    for kernel in KERNELS:
        # After rsqrt is in place: Liger's modules take it by name.
        module = import_module(f"liger_kernel.ops.{kernel}")
        for direction in ("forward", "backward"):
            count(module, f"{kernel}_{direction}")
    atexit.register(lambda: sys.stderr.write(f"liger: {json.dumps(calls)}\n"))
    del sys.argv[0]
    (script,) = entry_points(group="console_scripts", name=sys.argv[0])
    sys.exit(script.load()())


if __name__ == "__main__":
    main()
