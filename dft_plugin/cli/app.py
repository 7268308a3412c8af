"""The commands: `dft train`, `check`, `reference`, `losses`, `hosts`, and the group `autoload`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.table import Table

from dft_plugin.cli import autoload, beforehand
from dft_plugin.cli.checking import check
from dft_plugin.cli.explaining import explain, find
from dft_plugin.cli.printing import print_loss, print_losses, print_report
from dft_plugin.config.hosts import Launch
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.errors import ConflictError, DftError

app = typer.Typer(
    name="dft",
    help="One line, `loss: dft`, in the YAML that you already train with.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(autoload.app)

Config = Annotated[Path, typer.Argument(help="The YAML or JSON that you train with. It is only read.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads it at run time, on Python 3.10 too
    typer.Argument(help="key=value, e.g. learning_rate=1e-4 loss.alpha=0.7"),
]
HostName = Annotated[
    Optional[str],  # noqa: UP045 - as above
    typer.Option("--host", help="Which host the config is for, where it is not clear from its keys."),
]


@app.command()
def train(config: Config, overrides: Overrides = None, host: HostName = None) -> None:
    """Start the config's own host with the loss active."""
    report = check(config, overrides or [], host)
    if not report.ok or report.settings is None:
        raise ConflictError(report.obstacles())
    if report.version_problem:
        typer.echo(f"dft: {report.version_problem}", err=True)
    launch = Launch(str(config), report.config.overrides, report.settings)
    raise typer.Exit(report.host.launch(launch))


@app.command(name="check")
def check_command(
    config: Config,
    overrides: Overrides = None,
    host: HostName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what would be on, what it replaces, and every conflict. Never trains, never writes."""
    report = check(config, overrides or [], host)
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        print_report(report)
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def reference(
    config: Config,
    overrides: Overrides = None,
    host: HostName = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045 - as above
        typer.Option(help="The folder to write. CONFIG-reference, beside the config, where nothing is said."),
    ] = None,
    columns: Annotated[
        str, typer.Option(help="ref_logp, ref_mass, old_logp, with commas between them; or what the loss reads.")
    ] = "",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a forward pass.")] = 8,
) -> None:
    """Run the frozen reference of a loss over the data once, and write what the loss reads of it beside the tokens.

    Interrupted, the same command goes on where it was.
    """
    asked = beforehand.Asked(
        config,
        overrides or [],
        host,
        out or config.parent / f"{config.stem}-reference",
        [name for name in columns.replace(",", " ").split() if name],
        batch_size,
    )
    raise typer.Exit(beforehand.run(asked))


@app.command()
def losses(
    name: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Argument(help="Explain this one: options, when it helps, what it costs."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what may stand after `loss:`; with a name, explain that one."""
    catalogue = build_catalogue()
    found = [explain(entry) for entry in catalogue.objectives.values()] if name is None else [find(catalogue, name)]
    if as_json:
        every = [asdict(one) for one in found]
        typer.echo(json.dumps(every if name is None else every[0], indent=2))
    elif name is None:
        print_losses(found)
    else:
        print_loss(found[0])


@app.command()
def hosts() -> None:
    """List training frameworks: installed version, tested range, and the pip line that mends it."""
    table = Table("host", "installed", "tested", "from")
    found = build_catalogue().hosts
    for name, entry in found.items():
        table.add_row(name, entry.item.installed_version() or "no", entry.item.tested, entry.owner)
    Console().print(table)
    # Below the table, which would break a line that is to be copied.
    for entry in found.values():
        problem = entry.item.version_problem()
        if problem:
            typer.echo(problem)


def main() -> None:
    """Run `dft`; an error of ours is a message and exit code 2, not a traceback."""
    try:
        app()
    except DftError as error:
        typer.echo(f"dft: {error}", err=True)
        sys.exit(2)
