"""The Triton kernel compiled ahead of time for GPUs that are not here: `python -m benchmarks.aot`.

Prints what each variant takes of a GPU, and fails where registers spill. Nothing runs: what it costs in time, a GPU
has to say. Below sm_80 there is no arithmetic on bfloat16; a variant of it is compiled there as everywhere, since the
kernel widens what it loads to float32 and rounds what it stores, for both of which integer instructions will do.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dft_plugin.kernels.triton_rows import launch_for, score_row, unit_of

VOCABULARY = 151_936
TARGETS = {
    "sm_75": GPUTarget("cuda", 75, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ANYWHERE_SPILLS = 8
"""Bytes of a thread that rows which start anywhere may spill: with triton 3.7.1 a few programs on NVIDIA do."""

_TOOLS = Path(nvidia.__file__).parent / "bin"


@dataclass(frozen=True)
class Variant:
    """What the kernel is compiled for, beside the GPU; `anywhere`: rows that do not start on 16 bytes."""

    dtype: str
    softcap: bool
    entropy: bool
    squares: bool
    anywhere: bool = False

    def __str__(self) -> str:
        options = {
            "softcap": self.softcap,
            "entropy": self.entropy,
            "squares": self.squares,
            "anywhere": self.anywhere,
        }
        return " ".join([self.dtype, *(name for name, on in options.items() if on)])


@dataclass(frozen=True)
class Resources:
    """What a program takes.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread on an NVIDIA GPU, registers on an AMD GPU, that do not fit into registers.
        shared: bytes of a program.
        load_bits: width of its widest load.
        store_bits: width of its widest store.
    """

    registers: int
    spilled: int
    shared: int
    load_bits: int
    store_bits: int


def variants() -> Iterator[Variant]:
    """Yield all: dtypes by transform by what is asked for by where rows start."""
    for options in itertools.product(DTYPES, *[(False, True)] * 4):
        yield Variant(*options)


def compile_for(target: GPUTarget, variant: Variant) -> Resources:
    """Compile for rows of any vocabulary, with the launch of a large one."""
    launch = launch_for(VOCABULARY, DTYPES[variant.dtype], target.warp_size)
    constants = {
        "UNIT": unit_of(VOCABULARY + variant.anywhere, DTYPES[variant.dtype]),
        "CAP": variant.softcap,
        "ENTROPY": variant.entropy,
        "SQUARES": variant.squares,
        "BLOCK": launch.block,
    }
    pointers = {
        "x_ptr": f"*{variant.dtype}",
        "target_ptr": "*i64",
        "found_ptr": "*fp32",
        "top1_ptr": "*i8",
    }
    signature = {name: pointers.get(name, "fp32") for name in score_row.arg_names}
    signature |= dict.fromkeys(("stride", "T", "V"), "i32") | dict.fromkeys(constants, "constexpr")
    aligned = {(list(signature).index(name),): [["tt.divisibility", 16]] for name in pointers}
    if variant.anywhere:
        del aligned[(0,)]
    source = ASTSource(fn=score_row, signature=signature, constexprs=constants, attrs=aligned)
    kernel = triton.compile(source, target=target, options={"num_warps": launch.warps})
    if target.backend == "hip":
        return read_amd(kernel.asm["amdgcn"], kernel.metadata.shared)
    return read_nvidia(kernel.asm["cubin"], kernel.metadata.shared)


def read_nvidia(cubin: bytes, shared: int) -> Resources:
    """Read what NVIDIA's own tools, which come with triton, say of a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage = _output("cuobjdump", "-res-usage", path)
        code = _output("nvdisasm", "-c", path)
    numbers = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return Resources(
        numbers["REG"],
        numbers["STACK"] + numbers["LOCAL"],
        shared,
        _widest(re.findall(r"\bLDG\.E\S*", code)),
        _widest(re.findall(r"\bSTG\.E\S*", code)),
    )


def read_amd(code: str, shared: int) -> Resources:
    """Read the notes that the compiler leaves in its assembly."""
    numbers = {name: int(number) for name, number in re.findall(r"\.(\w+_count):\s*(\d+)", code)}
    return Resources(
        numbers["vgpr_count"],
        numbers["vgpr_spill_count"] + numbers["sgpr_spill_count"],
        shared,
        _widest(re.findall(r"\b(?:global|buffer)_load_\w+", code)),
        _widest(re.findall(r"\b(?:global|buffer)_store_\w+", code)),
    )


def _output(tool: str, *arguments: str | Path) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout


def _widest(instructions: list[str]) -> int:
    """Return the bits that the widest moves, of NVIDIA's `LDG.E.EF.128` or AMD's `global_load_dwordx4`."""
    widths = {".64": 64, ".128": 128, ".256": 256, "dwordx2": 64, "dwordx3": 96, "dwordx4": 128}
    return max(
        max((bits for text, bits in widths.items() if text in instruction), default=32) for instruction in instructions
    )


def main() -> None:
    """Print a table, and fail on a spill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=[], help=f"of {', '.join(TARGETS)}; all, if none is named")
    names = parser.parse_args().targets or list(TARGETS)
    if not TARGETS.keys() >= set(names):
        parser.error(f"no target {', '.join(set(names) - TARGETS.keys())}; there are {', '.join(TARGETS)}")
    spilled = []
    print(f"triton {triton.__version__}, V = {VOCABULARY}")
    print("| GPU | variant | registers | spilled | shared, bytes | load, bits | store, bits |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in names:
        for variant in variants():
            found = compile_for(TARGETS[name], variant)
            numbers = (found.registers, found.spilled, found.shared, found.load_bits, found.store_bits)
            print(f"| {name} | {variant} | {' | '.join(map(str, numbers))} |", flush=True)
            # Our own logits start on 16 bytes; a few of the programs for those that do not spill 8 bytes of a thread.
            if found.spilled > (ANYWHERE_SPILLS if variant.anywhere else 0):
                spilled.append(f"{name} {variant}")
    if spilled:
        raise SystemExit(f"registers spill: {', '.join(spilled)}. Fewer columns a lane (`launch_for`) take fewer.")


if __name__ == "__main__":
    main()
