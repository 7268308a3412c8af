"""`dft init`: a commented config to start from. It never overwrites."""

from __future__ import annotations

import shlex
from pathlib import Path

import dft_plugin
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.config.spelling import did_you_mean
from dft_plugin.errors import SettingsError, UnknownNameError

_TRAINER = "Train in Python: make your `Trainer`, and then `dft_plugin.activate(trainer)`."

KINDS = ("lora", "qlora", "full")


def examples() -> Path:
    """Return the folder of example configs: in the package, or beside it in a working tree."""
    package = Path(dft_plugin.__file__).parent
    inside = package / "example_configs"
    return inside if inside.is_dir() else package.parent / "example_configs"


def starters() -> dict[str, dict[str, Path]]:
    """Return the configs that one may start from, by host and kind."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(examples().glob("*/*.y*ml")):
        if path.stem in KINDS:
            found.setdefault(path.parent.name, {})[path.stem] = path
    return found


def every_in_python() -> dict[str, str]:
    """Return what starts in Python, and not from a YAML: how, by name."""
    hosts = {name: entry.item.in_python for name, entry in build_catalogue().hosts.items()}
    return {**{name: how for name, how in hosts.items() if how}, "transformers": _TRAINER}


def write(host: str, kind: str, out: Path | None) -> Path:
    """Write a host's starter.

    Args:
        host: a name as in `dft hosts`.
        kind: one of `KINDS`.
        out: the file; None: `dft-KIND` with the host's ending, in this folder.

    Raises:
        UnknownNameError: there is no starter for the host, or none of this kind.
        SettingsError: the file is there already, or cannot be written.
    """
    every = starters()
    if host in every_in_python():
        how = every_in_python()[host]
        raise UnknownNameError([f"dft init {host}: no YAML starts it. {how} Its page in the documentation shows how."])
    if host not in every:
        hint = did_you_mean(host, every)
        raise UnknownNameError([f"dft init {host}: no starter for that.{hint} Known: {', '.join(every)}."])
    if kind not in every[host]:
        raise UnknownNameError(
            [f"dft init {host} --{kind}: there is none of this kind. There are: {', '.join(every[host])}."]
        )
    source = every[host][kind]
    path = out or Path(f"dft-{kind}{source.suffix}")
    text = _addressed(source.read_text(encoding="utf-8"), path)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        said = f"{path} is there already, and stays as it is. Name another file: --out FILE."
        raise SettingsError([said]) from error
    except OSError as error:
        said = f"{path} cannot be written ({error.strerror}). Name a file of yours: --out FILE."
        raise SettingsError([said]) from error
    return path


def _addressed(text: str, path: Path) -> str:
    """Let the command in the first comment name the file."""
    words = text.split("\n", 1)[0].split()
    named = [word for word in words if word.endswith((".yaml", ".yml"))]
    return text.replace(named[0], shlex.quote(path.as_posix()), 1) if named else text
