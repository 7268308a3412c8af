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

`DFT_PLUGIN_AUTOLOAD=0` in the environment turns it off for a process and its children.
"""

from __future__ import annotations

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
"""Environment variable; `0` turns autoload off."""

PTH = "dft_plugin_autoload.pth"
"""Name of the file that `enable` writes, and the only one that `disable` removes."""

# Written into the .pth as one line. It runs at every start of Python, so it imports nothing that is not loaded yet,
# and it must stand on its own feet: `site` reports an error of a .pth line and carries on.
_CODE = """\
import os, sys
if os.environ.get({switch!r}) != "0" and not any(type(f).__name__ == "DftAutoload" for f in sys.meta_path):
    class DftAutoload:
        targets = {targets!r}
        def find_spec(self, name, path=None, target=None):
            if name not in self.targets:
                return None
            try:
                from dft_plugin.autoload import patched_spec
            except Exception as error:
                raise RuntimeError(
                    f"dft-plugin's autoload is on, but dft-plugin cannot be imported ({{error}}): `loss:` could not "
                    "take effect. Reinstall it, or turn autoload off by deleting " + {path!r}
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
    code = _CODE.format(switch=SWITCH, targets=dict(sorted(targets.items())), path=str(path))
    return f"import sys; exec({code!r}, {{'__name__': 'dft_plugin_autoload'}})\n"


def enable(targets: Mapping[str, str]) -> Path:
    """Write the file, or bring it up to date. It takes effect in processes that start from now on.

    Raises:
        PluginError: the folder cannot be written to.
    """
    path = pth_path()
    try:
        path.write_text(pth_text(targets, path), encoding="utf-8")
    except OSError as error:
        raise PluginError(
            f"{path} cannot be written ({error.strerror}). Work in a virtual environment of your own, or start with "
            "`dft train`, which needs no autoload."
        ) from error
    return path


def disable() -> bool:
    """Remove the file, and nothing else. Returns whether it was there.

    Raises:
        PluginError: it cannot be removed.
    """
    path = pth_path()
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise PluginError(f"{path} cannot be removed ({error.strerror}). Delete it by hand.") from error
    return True


def state(targets: Mapping[str, str]) -> State:
    """Look at the file and at this process."""
    path = pth_path()
    text = path.read_text(encoding="utf-8") if path.is_file() else None
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
                f"effect. Reinstall dft-plugin, or set {SWITCH}=0 to run without it."
            ) from error

    def __getattr__(self, name: str) -> Any:
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)
