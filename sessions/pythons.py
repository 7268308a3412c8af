"""Other Pythons than the one that runs nox."""

import os
import shutil
import subprocess
from pathlib import Path

import nox


def interpreter(version: str) -> str:
    """Return a Python of a version, on PATH or of pyenv; its bare version where there is none, so that nox says so."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    newest_first = sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"), reverse=True)
    for found in [shutil.which(f"python{version}"), *newest_first]:
        # A shim of pyenv's is on PATH for every version that it has, and starts those that are chosen.
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return str(found)
    return version


def without_cuda(session: nox.Session, torch: str) -> None:
    """Install torch where PyPI has it for GPUs alone: without 2.8 GB of libraries, which no test calls."""
    session.install("--no-deps", torch)
    called = session.run_install("python", "tests/lib/cpu_torch.py", "strike", silent=True)
    if called and called.strip():
        session.install("--no-deps", *str(called).split())
        session.run_install("python", "tests/lib/cpu_torch.py", "stand-ins")
