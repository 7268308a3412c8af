"""What the commands print for a person; at 80 columns, too."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dft_plugin.cli.checking import OURS, Report
from dft_plugin.cli.explaining import Explanation


def print_report(report: Report) -> None:
    """Print what `dft check` found."""
    out = typer.echo
    version = report.host.installed_version() or "not installed"
    out(f"config    {report.config.path}")
    out(f"host      {report.host.name} ({version})")
    if report.settings:
        out(f"loss      {report.settings.line(kernel=report.host.runs_kernels)}")
    for line in report.replaces:
        out(f"replaces  {line}")
    if report.version_problem:
        out(f"version   {report.version_problem}")
    for hint in report.hints:
        out(f"hint      {hint}")
    for problem in report.problems:
        out(f"problem   {problem}")
    for conflict in report.conflicts:
        out(f"conflict  {conflict}")
    if report.ok and report.commands:
        out(f"hint      {report.commands}")
    out("result    " + ("the loss will be on" if report.ok else "a run would be refused"))


def print_losses(every: Sequence[Explanation]) -> None:
    """Print a table of all objectives."""
    table = Table("loss", "weight of a token", "options (default)")
    for one in every:
        source = one.source.partition(";")[0] + ("" if one.owner == OURS else f"\nfrom {one.owner}")
        options = "\n".join(f"{option.name} ({option.shown})" for option in one.options)
        table.add_row(one.name, Text.assemble(one.summary, "\n", (source, "dim")), options)
    console = Console()
    console.print(table)
    console.print(Text("dft losses NAME explains one: when it helps, its options, what it costs."))


def print_loss(one: Explanation) -> None:
    """Print all that is known of one objective."""
    console = Console()
    console.print(Text(f"{one.name}: {one.summary}", style="bold"))
    console.print()
    said = {
        "helps": [one.helps or "not said"],
        "about": one.about,
        "source": [one.source],
        "cost": one.cost or ["that of plain SFT with the same kernel"],
        "divided by": [one.divisor],
        "logs": one.logs,
        "from": [] if one.owner == OURS else [one.owner],
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    for what, lines in said.items():
        for number, line in enumerate(lines):
            grid.add_row("" if number else what, Text(line))
    console.print(grid)
    if one.options:
        console.print()
        table = Table("option", "allowed", "default", "")
        for option in one.options:
            table.add_row(option.name, Text(option.allowed), Text(option.shown), Text(option.description))
        console.print(table)
        console.print(Text("A number may change during the run: {from: A, to: B, until: 0.3} in its place."))
    typer.echo("")
    for line in one.examples:
        # Not by rich, which would break a line that is to be copied.
        typer.echo(f"    {line}")
