"""Three environments for one host: without dft-plugin, with it, and with autoload enabled as well.

Each is a virtual environment whose packages are links to those of an environment that has the host, all but ours. In
`stock` there is no module, no entry point, no `.pth` and no command of ours to be found; nothing is hidden, nothing is
blocked. In the others this checkout is installed as `pip install -e .` does it. All else is the same files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
KINDS = ("stock", "installed", "autoload")
_OURS = ("dft_plugin", "_dft_plugin.pth")
"""What names of ours in site-packages begin with: the package, its metadata, its `.pth` files."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment.

    Attributes:
        kind: of `KINDS`.
        folder: of it.
    """

    kind: str
    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def run(self, *words: str | Path, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command of it to its end.

        Args:
            words: the command, of its `bin`, and what follows.
            cwd: where; None: in its own folder.
            more: variables.
        """
        command = [self.folder / "bin" / words[0], *words[1:]]
        where, variables = cwd or self.folder, self.variables(more)
        return subprocess.run(command, cwd=where, capture_output=True, text=True, env=variables, check=False)

    def variables(self, more: Mapping[str, str]) -> dict[str, str]:
        """Return the variables of a process in it; nothing of ours gets in by `PYTHONPATH`."""
        left_out = ("PYTHON", "VIRTUAL_ENV", "DFT_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
        path = f"{self.folder / 'bin'}{os.pathsep}{kept.get('PATH', '')}"
        return {**kept, "PATH": path, "VIRTUAL_ENV": str(self.folder), **more}


def make(given: Path, kind: str, folder: Path) -> Environment:
    """Make one of the three.

    Args:
        given: an environment that has the host, and dft-plugin.
        kind: of `KINDS`.
        folder: to make it in.
    """
    subprocess.run([given / "bin" / "python", "-m", "venv", "--without-pip", folder], check=True)
    theirs, packages = _packages(given), _packages(folder)
    for entry in sorted(theirs.iterdir()):
        if not entry.name.startswith(_OURS):
            (packages / entry.name).symlink_to(entry)
    for script in sorted((given / "bin").iterdir()):
        _copy_script(script, given, folder)
    made = Environment(kind, folder)
    if kind != "stock":
        _install(theirs, packages)
    if kind == "autoload":
        _autoload(made)
    return made


def _packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python3.*/site-packages")
    return found


def _copy_script(script: Path, given: Path, folder: Path) -> None:
    """Copy a command such that it starts the new environment's interpreter."""
    place = folder / "bin" / script.name
    if place.exists() or script.is_symlink() or not script.is_file() or script.name.lower().startswith("activate"):
        return
    content = script.read_bytes()
    if content[:2] == b"#!" and script.name != "dft":
        place.write_bytes(content.replace(str(given / "bin").encode(), str(folder / "bin").encode(), 1))
        place.chmod(0o755)


def _install(theirs: Path, packages: Path) -> None:
    (packages / "_dft_plugin.pth").write_text(f"{CHECKOUT}\n{CHECKOUT / 'integrations'}\n")
    for metadata in theirs.glob("dft_plugin-*.dist-info"):
        shutil.copytree(metadata, packages / metadata.name)


def _autoload(environment: Environment) -> None:
    environment.run("python", "-m", "dft_plugin", "autoload", "enable").check_returncode()


def traces(environment: Environment) -> dict[str, bool]:
    """Say what of ours a process in it can find: the module, entry points, the finder of autoload."""
    asked = (
        "import importlib.metadata as m, importlib.util as u, json, sys;"
        "entries = [e for d in m.distributions() for e in d.entry_points if e.value.startswith('dft_')];"
        "print(json.dumps({'module': u.find_spec('dft_plugin') is not None, 'entry points': bool(entries),"
        "'autoload': any(type(f).__name__ == 'DftAutoload' for f in sys.meta_path)}))"
    )
    done = environment.run("python", "-c", asked)
    done.check_returncode()
    found: dict[str, bool] = json.loads(done.stdout)
    return found
