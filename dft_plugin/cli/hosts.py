"""`dft hosts`: what is installed, what the tests run with, and the line that mends the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from dft_plugin.config.hosts import Host
from dft_plugin.config.installed import Library, pinned_by, version_problem
from dft_plugin.config.plugins import Entry
from dft_plugin.config.spelling import did_you_mean
from dft_plugin.errors import UnknownNameError

Hosts = Mapping[str, Entry[Host]]


def print_hosts(hosts: Hosts, libraries: Sequence[Library]) -> None:
    """Print tables, and below them lines to copy, each in one piece: not by rich, which would break them."""
    every = [entry.item for entry in hosts.values()]
    pins = {host.name: pinned_by(host, every) for host in every}
    known = [(host.name, _installed(host, pins[host.name]), host.tested) for host in every]
    owners = [entry.owner for entry in hosts.values()]
    _table(("host", "installed", "tested"), known, ("from", *owners))
    typer.echo("")
    _table(("with", "installed", "tested"), [(one.name, one.installed or "no", one.tested) for one in libraries])
    here = [host for host in every if host.installed_version() is not None and not pins[host.name]]
    problems = [*(version_problem(host, every) for host in here), *(library.problem for library in libraries)]
    missing = [host.name for host in every if host.installed_version() is None]
    if missing:
        problems.append(f"Not installed: {', '.join(missing)}. How to install one: dft hosts NAME")
    for problem in filter(None, problems):
        typer.echo(f"\n{problem}")


def find(hosts: Hosts, name: str) -> Host:
    """Return a host by name.

    Raises:
        UnknownNameError: there is none of that name; says the closest.
    """
    if name not in hosts:
        raise UnknownNameError([f"no host is called `{name}`.{did_you_mean(name, hosts)} Known: {', '.join(hosts)}."])
    return hosts[name].item


def print_host(host: Host, every: Sequence[Host]) -> None:
    """Print what is to be done for one host, its pip line in one piece."""
    problem = version_problem(host, every)
    typer.echo(problem or f"{host.distribution} {host.installed_version()} is installed, and tested ({host.tested}).")


def as_json(hosts: Hosts, libraries: Sequence[Library]) -> dict[str, Any]:
    """Return plain data for `--json`."""
    every = [entry.item for entry in hosts.values()]
    return {
        "hosts": [
            {
                "name": name,
                "distribution": entry.item.distribution,
                "installed": entry.item.installed_version(),
                "tested": entry.item.tested,
                "install": entry.item.install,
                "problem": version_problem(entry.item, every),
                "from": entry.owner,
            }
            for name, entry in hosts.items()
        ],
        "with": [
            {"name": one.name, "installed": one.installed, "tested": one.tested, "problem": one.problem}
            for one in libraries
        ],
    }


def _installed(host: Host, pinned: Sequence[str]) -> str:
    version = host.installed_version()
    if version is None:
        return "no"
    return f"{version} (of {', '.join(pinned)})" if pinned else version


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], last: Sequence[str] = ()) -> None:
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for number, cells in enumerate(lines):
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        typer.echo("  ".join([*padded, *last[number : number + 1]]).rstrip())
