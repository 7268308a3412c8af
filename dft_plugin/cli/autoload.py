"""The commands `dft autoload enable | disable | status`."""

from __future__ import annotations

import os
from collections.abc import Mapping

import typer

from dft_plugin import autoload
from dft_plugin.config.plugins import Catalogue, build_catalogue
from dft_plugin.errors import PluginError

app = typer.Typer(
    name="autoload",
    help="Let the hosts' own commands (`axolotl train` ...) honour `loss:` in this environment.",
    no_args_is_help=True,
)


@app.command()
def enable() -> None:
    """Write one small .pth file into site-packages. Run it again after an upgrade."""
    catalogue = build_catalogue()
    path = autoload.enable(targets(catalogue))
    typer.echo(f"autoload is on for {', '.join(_here(catalogue)) or 'hosts that you install from now on'}: {path}")
    typer.echo(f"It holds for every process that starts from now on; {autoload.SWITCH}=0 turns it off for one.")
    typer.echo("Before you uninstall dft-plugin: dft autoload disable")
    if autoload.is_switched_off():
        typer.echo(f"It does not in this shell: {autoload.SWITCH}={os.environ[autoload.SWITCH]} is set. Unset it.")


@app.command()
def disable() -> None:
    """Remove that file, and nothing else."""
    removed = autoload.disable()
    typer.echo(f"autoload is off: {'removed' if removed else 'there was no'} {autoload.pth_path()}")


@app.command()
def status() -> None:
    """Say what is on, where and for what. Exit code: 0 on, 1 off, 2 written but not in force."""
    catalogue = build_catalogue()
    found = autoload.state(targets(catalogue))
    if not found.written:
        typer.echo(f"autoload  off: there is no {found.path}. Turn it on: dft autoload enable")
        raise typer.Exit(1)
    for name, patched in _here(catalogue).items():
        for target, patcher in sorted(patched.items()):
            typer.echo(f"target    {target} of {name} (patched by {patcher})")
    if not found.current:
        typer.echo(f"autoload  outdated: {found.path}. Run: dft autoload enable")
        raise typer.Exit(2)
    if not found.active:
        why = f"{autoload.SWITCH}={os.environ[autoload.SWITCH]}" if autoload.is_switched_off() else "it is newer"
        typer.echo(f"autoload  written, but not in force in this process ({why}): {found.path}")
        raise typer.Exit(2)
    typer.echo(f"autoload  on: {found.path}")


def targets(catalogue: Catalogue) -> dict[str, str]:
    """Collect what the hosts want patched.

    Raises:
        PluginError: two of them want to patch one module.
    """
    found: dict[str, str] = {}
    for entry in catalogue.hosts.values():
        for target, patcher in entry.item.autoload_targets.items():
            if found.setdefault(target, patcher) != patcher:
                raise PluginError(f"{found[target]} and {patcher} both want to patch {target}. Uninstall one.")
    return found


def _here(catalogue: Catalogue) -> dict[str, Mapping[str, str]]:
    """Return what is patched of the hosts that are installed."""
    hosts = [entry.item for entry in catalogue.hosts.values()]
    return {
        host.name: host.autoload_targets
        for host in hosts
        if host.autoload_targets and host.installed_version() is not None
    }
