"""Make PyPI's CUDA build of torch import on a machine without a GPU, and without NVIDIA's libraries (2.8 GB).

Usage: `python cpu_torch.py strike`, after `pip install --no-deps torch`, and `python cpu_torch.py stand-ins` after
what `strike` printed was installed: both by the interpreter that torch is installed for. A CPU build is left as it is.

For some versions of Python there may be no CPU build of torch where packages come from. `strike` removes NVIDIA's
packages from what torch's metadata asks for, and prints the two that torch calls while it is imported. `stand-ins`
puts a library in the place of each other one that torch is linked with: of its name, with the functions and version
names that are asked for. Whoever calls one is stopped with the library's name; on a CPU nobody does. Needs gcc and
objdump.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

CALLED = ("nvidia-cuda-runtime", "nvidia-cuda-cupti")
"""Small, and called while torch is imported."""

# Libraries whose functions carry no version name: told by how their names begin.
UNVERSIONED = {
    "libcufile.so.0": "cuFile",
    "libcurand.so.10": "curand",
    "libcusparseLt.so.0": "cusparseLt",
    "libnccl.so.2": "nccl",
}
OF_THE_SYSTEM = re.compile(r"lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|gomp)\.so|ld-|libcuda\.so\.1")
"""The last one is the driver's, which the runtime looks for and must not find."""

AS_A_CPU_BUILD = """

def _is_compiled():  # cpu_torch
    return False


def _lazy_init():
    raise AssertionError("Torch not compiled with CUDA enabled")
"""
"""Without a driver a CUDA build raises a RuntimeError where a CPU build raises this, which hosts expect."""


def strike(site: Path) -> list[str]:
    """Remove NVIDIA's packages from torch's metadata; return the requirements that are still needed."""
    (metadata,) = site.glob("torch-*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8")
    asked = re.findall(r"^Requires-Dist: (?:cuda-|nvidia-).*\n", text, re.MULTILINE)
    metadata.write_text("".join(line for line in text.splitlines(True) if line not in asked), encoding="utf-8")
    if not asked:
        return []
    toolkit = re.findall(r"^Requires-Dist: cuda-toolkit.*==(\d+\.\d+)", "".join(asked), re.MULTILINE)
    if toolkit:
        return [f"{name}=={toolkit[0]}.*" for name in CALLED]
    # Before 2.11 torch named them itself.
    named = (line.removeprefix("Requires-Dist: ").partition(";")[0].strip() for line in asked)
    return [requirement for requirement in named if requirement.startswith(CALLED)]


def put_stand_ins(site: Path) -> list[str]:
    """Make the libraries that torch is linked with and that are not there; return their names."""
    lib = site / "torch" / "lib"
    present = {path.name for path in [*site.glob("nvidia/**/*.so*"), *lib.glob("*.so*")]}
    needed, versions, asked = set[str](), defaultdict[str, set[str]](set), defaultdict[str | None, set[str]](set)
    for library in lib.glob("*.so"):
        said = _objdump("-p", library)
        needed |= set(re.findall(r"NEEDED\s+(\S+)", said))
        for owner, block in re.findall(r"required from (\S+):\n((?:\s+0x.*\n)+)", said):
            versions[owner] |= set(re.findall(r"\s(\S+)\n", block))
        for line in _objdump("-T", library).splitlines():
            if found := re.search(r"\*UND\*\s+\w+\s+(?:\((\S+?)\)\s+|(\S+)\s+)?(\S+)$", line):
                version = found[1] or found[2]
                asked[None if version == "Base" else version].add(found[3])
    missing = sorted(name for name in needed - present if not OF_THE_SYSTEM.match(name))
    for name in missing:
        begin = UNVERSIONED.get(name)
        functions = {function for function in asked[None] if begin and function.startswith(begin)}
        _compile(lib / name, functions.union(*(asked[version] for version in versions[name])), versions[name])
    return missing


def _objdump(what: str, library: Path) -> str:
    return subprocess.run(["objdump", what, library], capture_output=True, text=True, check=True).stdout


def _compile(path: Path, functions: Iterable[str], versions: Iterable[str]) -> None:
    code = [
        "#include <stdio.h>",
        "#include <stdlib.h>",
        f'static void no(void) {{ fputs("stand-in for {path.name} called\\n", stderr); abort(); }}',
        *(f"void {function}(void) {{ no(); }}" for function in sorted(functions)),
    ]
    nodes = [f"{version} {{ global: *; }};" for version in sorted(versions)] or ["{ global: *; };"]
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, "stand_in.c"), Path(folder, "versions.map")
        source.write_text("\n".join([*code, ""]))
        script.write_text("\n".join([*nodes, ""]))
        options = ["-w", "-fno-builtin", "-shared", "-fPIC", f"-Wl,-soname,{path.name}"]
        linked = [*options, f"-Wl,--version-script={script}", "-o", str(path), str(source)]
        subprocess.run(["gcc", *linked], check=True)


def main(what: str) -> None:
    """Do one of the two steps for the interpreter that runs this."""
    site = Path(sysconfig.get_path("purelib"))
    if what == "strike":
        sys.stdout.write("\n".join(strike(site)))
        return
    if put_stand_ins(site):
        module = site / "torch" / "cuda" / "__init__.py"
        text = module.read_text(encoding="utf-8")
        if "cpu_torch" not in text:
            module.write_text(text + AS_A_CPU_BUILD, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
