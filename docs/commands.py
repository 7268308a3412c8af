"""The page of the command line, made from the command itself."""

from __future__ import annotations

from typing import Any, get_type_hints

from typer.main import get_command

from dft_plugin.cli.app import app

HEAD = """\
# Command line

Made by `python docs/generate.py` from the commands. `dft COMMAND --help` says the same, and `python -m dft_plugin` is
`dft` where that is not on the path. `dft --version` prints the version; `dft --install-completion` lets your shell
complete losses, options and hosts.

What may stand behind a config is on the page of [configs and overrides](configs.md).
"""


def page() -> str:
    """Every command: what it does, its arguments and its options."""
    commands = list(_leaves("dft", get_command(app)))
    rows = [f"| [`{name}`](#{_anchor(name)}) | {_help(command)[0]} |" for name, command in commands]
    table = "\n".join(["| | |", "| --- | --- |", *rows])
    return "\n".join([HEAD, table, *(_section(name, command) for name, command in commands), ""])


def _leaves(name: str, command: Any) -> Any:
    """Yield commands with their whole names; those of a group one by one."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for key, one in inner.items():
        yield from _leaves(f"{name} {key}", one)


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


def _help(command: Any) -> list[str]:
    """Return its help by paragraphs, each in one line."""
    return [" ".join(part.split()) for part in (command.help or "").split("\n\n")]


def _section(name: str, command: Any) -> str:
    asked = [one for one in command.params if one.name != "help"]
    arguments = [_argument(one) for one in asked if one.param_type_name == "argument"]
    options = [one for one in asked if one.param_type_name == "option"]
    usage = " ".join([name, *arguments, *(["[OPTIONS]"] if options else [])])
    parts = [f"\n## `{name}`\n", f"```\n{usage}\n```\n", *(f"{text}\n" for text in _help(command))]
    if asked:
        said = get_type_hints(command.callback, include_extras=True)
        parts += ["| | |", "| --- | --- |", *(_row(one, said[one.name].__metadata__[0].help) for one in asked)]
    return "\n".join(parts).rstrip("\n")


def _argument(one: Any) -> str:
    word = one.name.upper() + ("..." if one.nargs == -1 else "")
    return word if one.required else f"[{word}]"


def _row(one: Any, said: str) -> str:
    """Return name, help and default; a default of nothing, or of a switch that is off, goes without saying.

    `said` comes from the function: of arguments, an old typer beside a new click loses it.
    """
    name = (
        f"`{one.name.upper()}`" if one.param_type_name == "argument" else ", ".join(f"`{word}`" for word in one.opts)
    )
    default = "" if one.default is None or one.default in (False, "") else f" Default: `{one.default}`."
    return f"| {name} | {said}{default} |"
