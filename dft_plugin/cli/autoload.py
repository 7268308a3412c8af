"""The commands `dft autoload enable | disable | status`."""

from __future__ import annotations

import typer

from dft_plugin import autoload
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.errors import PluginError

app = typer.Typer(
    name="autoload",
    help="Let the hosts' own commands (`axolotl train` ...) honour `loss:` in this environment.",
    no_args_is_help=True,
)


@app.command()
def enable() -> None:
    """Write one small .pth file into site-packages. Run it again after an upgrade."""
    targets = _targets()
    path = autoload.enable(targets)
    typer.echo(f"autoload is on for {_hosts(targets)}: {path}")
    typer.echo(f"It holds for every process that starts from now on; {autoload.SWITCH}=0 turns it off for one.")


@app.command()
def disable() -> None:
    """Remove that file, and nothing else."""
    removed = autoload.disable()
    typer.echo(f"autoload is off: {'removed' if removed else 'there was no'} {autoload.pth_path()}")


@app.command()
def status() -> None:
    """Say what is on, where and for what. Exit code: 0 on, 1 off, 2 written but not in force."""
    targets = _targets()
    found = autoload.state(targets)
    for target, patcher in sorted(targets.items()):
        typer.echo(f"target    {target} (patched by {patcher})")
    if not found.written:
        typer.echo(f"autoload  off: there is no {found.path}")
        raise typer.Exit(1)
    if not found.current:
        typer.echo(f"autoload  outdated: {found.path}. Run: dft autoload enable")
        raise typer.Exit(2)
    if not found.active:
        typer.echo(f"autoload  written, but not in force in this process ({autoload.SWITCH}=0?): {found.path}")
        raise typer.Exit(2)
    typer.echo(f"autoload  on: {found.path}")


def _targets() -> dict[str, str]:
    """Collect what the hosts want patched."""
    found: dict[str, str] = {}
    for entry in build_catalogue().hosts.values():
        for target, patcher in entry.item.autoload_targets.items():
            if found.setdefault(target, patcher) != patcher:
                raise PluginError(f"{found[target]} and {patcher} both want to patch {target}. Uninstall one.")
    return found


def _hosts(targets: dict[str, str]) -> str:
    return ", ".join(sorted({target.partition(".")[0] for target in targets})) or "no host"
