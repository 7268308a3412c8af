"""How a refusal is shown: ours in a program of a host's, a host's where we make its trainer. No torch, no host."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from types import TracebackType

from dft_plugin.errors import ConflictError, DftError, SettingsError

SWITCH = "DFT_TRACEBACK"
"""Environment variable that shows tracebacks, where we show none otherwise."""

_OURS = "dft_"
"""How the names of our packages begin."""

_REMEDIES = (("bf16/gpu", "bf16=false"),)
"""What transformers says of its arguments, and the override that mends it."""


def tracebacks_wanted() -> bool:
    """Say whether the environment asks for tracebacks."""
    return os.environ.get(SWITCH, "").strip().lower() not in ("", "0", "off", "false", "no")


def without_traceback(package: str) -> None:
    """Have a refusal that nobody catches end a host's own program in its message, as it does `dft train`.

    It is what the interpreter prints that changes, and nothing else: whoever catches the exception gets it, the exit
    code is 1, and launchers see what they saw. A script or notebook of the user's shows a traceback as ever, since the
    line of theirs that it names is worth reading.

    Args:
        package: the host's.
    """
    before = sys.excepthook
    if hasattr(before, _MARK) or tracebacks_wanted() or not _is_program_of(package):
        return

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, SettingsError):
            sys.stderr.write(f"dft: {error}\n")
        else:
            before(kind, error, traceback)

    setattr(hook, _MARK, True)
    sys.excepthook = hook


def of_host(name: str, error: Exception) -> ConflictError | None:
    """Return what to say of an error of a host that was to make its trainer; None: it is ours.

    Args:
        name: of the host.
        error: what it raised.
    """
    if isinstance(error, DftError) or _is_ours(error):
        return None
    said = str(error).strip()
    remedy = next((change for words, change in _REMEDIES if words in said), "")
    todo = f"Type the same with `{remedy}` behind it" if remedy else "Change the config, or put KEY=VALUE behind it"
    return ConflictError(
        [f"{name} stopped while it made its trainer: {type(error).__name__}: {said}\n{todo}; {SWITCH}=1 shows where."]
    )


def _is_ours(error: Exception) -> bool:
    """Whether it was raised in a line of ours."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and str(traceback.tb_frame.f_globals.get("__name__")).startswith(_OURS)


def _is_program_of(package: str) -> bool:
    """Whether this process runs a module, a file or a command of a package."""
    main = sys.modules.get("__main__")
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name).partition(".")[0] == package
    if file is None:
        return False
    home = getattr(sys.modules.get(package), "__file__", None)
    if home is not None and Path(file).is_relative_to(Path(home).parent):
        return True
    commands = metadata.entry_points(group="console_scripts", name=Path(file).stem)
    return any(command.module.partition(".")[0] == package for command in commands)


_MARK = "shows_dft_refusals"
