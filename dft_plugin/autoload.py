"""Autoload: let a host's own, unmodified command honour `loss:`. Standard library only.

`dft autoload enable` writes one `.pth` file into this environment. At the start of every Python process it puts
a finder on `sys.meta_path`, and does nothing else: nothing is imported. When a module is imported that a
host has named (`Host.autoload_targets`), this module is loaded, the host's module is executed, and the host's
adapter patches it. Every process that a launcher starts in the environment gets the same treatment.

The contract for an adapter, in full:

- `autoload_targets = {"host.module": "our.module"}` on the Host class;
- `our.module` has a function `patch(module)`, called with the host's module each time it has been executed,
  before the import returns to whoever asked for it; what `patch` returns is ignored;
- an error of `patch`, and a failed import of `our.module`, stops the import, and so the run. An ImportError is
  turned into a PluginError, since a host may swallow the former and go on to train cross-entropy;
- if dft-plugin is gone or broken, the `.pth` file itself raises a RuntimeError that says what to delete.

`DFT_PLUGIN_AUTOLOAD=0` (or `off`, `false`, `no`) in the environment turns it off for a process and its children.

The file is ASCII, since Python reads it in the locale's encoding, and a line that it cannot decode keeps every Python
of the environment from starting. It is written beside its place and moved there, so that no process reads half of it.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from dft_plugin.errors import PluginError

SWITCH = "DFT_PLUGIN_AUTOLOAD"
"""Environment variable that turns autoload off."""

OFF = ("0", "off", "false", "no", "n", "f", "disable", "disabled", "none")
"""Values of it that do, in small letters or large."""

PTH = "dft_plugin_autoload.pth"
"""Name of the file that `enable` writes, and the only one that `disable` removes."""

# Written into the .pth as one line. It runs at every start of Python, so it imports nothing that is not loaded yet,
# and it must stand on its own feet: `site` reports an error of a .pth line and carries on.
_CODE = """\
import os, sys
off = os.environ.get({switch!a}, "").strip().lower() in {off!a}
if not off and not any(type(f).__name__ == "DftAutoload" for f in sys.meta_path):
    class DftAutoload:
        targets = {targets!a}
        def find_spec(self, name, path=None, target=None):
            if name not in self.targets:
                return None
            try:
                from dft_plugin.autoload import patched_spec
            except Exception as error:
                raise RuntimeError(
                    f"dft-plugin's autoload is on, but dft-plugin cannot be imported ({{error}}): `loss:` could not "
                    "take effect. Reinstall it, or turn autoload off by deleting " + {path!a}
                ) from error
            return patched_spec(self, name, self.targets[name], path, target)
    sys.meta_path.insert(0, DftAutoload())
"""


@dataclass(frozen=True)
class State:
    """What is on, and where.

    Attributes:
        path: where the `.pth` file is, or would be.
        written: whether it is there.
        current: whether it is what `enable` would write now.
        active: whether this process has the finder.
    """

    path: Path
    written: bool
    current: bool
    active: bool


def pth_path() -> Path:
    """Where the file belongs: the site-packages of the running interpreter."""
    return Path(sysconfig.get_path("purelib")) / PTH


def pth_text(targets: Mapping[str, str], path: Path) -> str:
    """Return the content of the file: one line that `site` executes."""
    code = _CODE.format(switch=SWITCH, off=OFF, targets=dict(sorted(targets.items())), path=str(path))
    return f"import sys; exec({code!a}, {{'__name__': 'dft_plugin_autoload'}})\n"


def is_switched_off() -> bool:
    """Say whether the environment turns it off."""
    return os.environ.get(SWITCH, "").strip().lower() in OFF


def enable(targets: Mapping[str, str]) -> Path:
    """Write the file, or bring it up to date. It takes effect in processes that start from now on.

    What is up to date already is left alone, in an environment that nobody can write to as well.

    Raises:
        PluginError: the folder cannot be written to, or this interpreter reads no .pth file there.
    """
    path = pth_path()
    if not state(targets).current:
        try:
            _write(path, pth_text(targets, path))
        except OSError as error:
            before = "An older one is still there, and in force. " if path.is_file() else ""
            raise PluginError(
                f"{path} cannot be written ({error.strerror}). {before}Work in a virtual environment of your own, "
                "or start with `dft train`, which needs no autoload."
            ) from error
    if path.parent.resolve() not in site_folders():
        raise PluginError(
            f"{path} is written, but {sys.executable} reads no .pth file in that folder (it was started with -S, or "
            "in another environment), so autoload is not on. Start with `dft train`, which needs none."
        )
    return path


def disable() -> bool:
    """Remove the file, and nothing else. Returns whether it was there.

    Raises:
        PluginError: it cannot be removed, or there is another one that this interpreter reads.
    """
    path = pth_path()
    try:
        path.unlink()
        removed = True
    except FileNotFoundError:
        removed = False
    except OSError as error:
        if path.is_dir():
            # Python reads none, so it was not on.
            removed = False
        else:
            raise PluginError(
                f"{path} cannot be removed ({error.strerror}), so autoload is still on. Delete it as its owner; until "
                f"then {SWITCH}=0 in the environment turns it off."
            ) from error
    mine = path.parent.resolve()
    others = [folder / PTH for folder in site_folders() if folder != mine and (folder / PTH).exists()]
    if others:
        raise PluginError(
            f"autoload is still on, through {', '.join(map(str, others))}, which another environment's "
            "`dft autoload enable` wrote. Delete it, too."
        )
    return removed


def site_folders() -> list[Path]:
    """Return the folders whose .pth files this interpreter reads when it starts."""
    if sys.flags.no_site:
        return []
    users = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return list(dict.fromkeys(Path(folder).resolve() for folder in [*site.getsitepackages(), *users]))


def _write(path: Path, text: str) -> None:
    """Write a file such that others see what was there, or all of it."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_text(text, encoding="ascii")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def state(targets: Mapping[str, str]) -> State:
    """Look at the file and at this process."""
    path = pth_path()
    text = path.read_bytes().decode("utf-8", "replace") if path.is_file() else None
    return State(
        path=path,
        written=text is not None,
        current=text == pth_text(targets, path),
        active=any(type(finder).__name__ == "DftAutoload" for finder in sys.meta_path),
    )


def patched_spec(
    finder: Any, name: str, patcher: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    """Find a host's module as Python would without us, and have it patched once it is executed.

    Args:
        finder: ours, which is passed over.
        name: the host's module.
        patcher: our module with `patch(module)`.
        path: as in `find_spec`.
        target: as in `find_spec`.
    """
    for other in sys.meta_path:
        find = getattr(other, "find_spec", None)
        spec: ModuleSpec | None = find(name, path, target) if find and other is not finder else None
        if spec is not None:
            if spec.loader is not None:
                spec.loader = _PatchingLoader(spec.loader, patcher)
            return spec
    return None


class _PatchingLoader(Loader):
    """Stands in for a module's loader until the module is executed."""

    def __init__(self, loader: Any, patcher: str) -> None:
        self.loader = loader
        self.patcher = patcher

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self.loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module looks as it would without us.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        try:
            import_module(self.patcher).patch(module)
        except ImportError as error:
            raise PluginError(
                f"autoload: {self.patcher} could not patch {module.__name__} ({error}), so `loss:` would not take "
                "effect. After an upgrade run: dft autoload enable. Else reinstall dft-plugin, or set "
                f"{SWITCH}=0 to run without it."
            ) from error

    def __getattr__(self, name: str) -> Any:
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)
