"""`dft compare` and `dft report`: runs side by side, in the terminal and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from dft_plugin.errors import SettingsError
from dft_plugin.runs import probabilities
from dft_plugin.runs.logs import EmptyLogError, Run, load, named_apart
from dft_plugin.runs.page import plotly_script, render
from dft_plugin.runs.probabilities import Change
from dft_plugin.runs.samples import Samples
from dft_plugin.runs.table import NLL_ALONE, Line, compare, without_statistics

_TITLE, _CELL = 34, 14
"""Columns of a terminal that the names of quantities want at least, and the numbers of a run: `-1.235e-05`."""

_ANY = 10_000
"""Columns that are enough for any table."""

_BAND, _CHANGE = 16, 19
"""The same for bands of probability, and for a change: `100.0% -> 100.0%`."""


def load_all(paths: Sequence[Path]) -> list[Run]:
    """Read runs; all that cannot be read are named at once. One that has logged nothing is named, and left out.

    Raises:
        EmptyLogError: none of them has logged anything.
        SettingsError: one or more hold nothing that could be read.
    """
    runs, problems, empty = [], list[str](), list[str]()
    for path in paths:
        try:
            runs.append(load(path))
        except EmptyLogError as error:
            empty += error.problems
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError([*problems, *empty])
    if not runs:
        raise EmptyLogError(empty)
    for problem in empty:
        typer.echo(f"left out: {problem}", err=True)
    return named_apart(runs)


def show(runs: Sequence[Run]) -> None:
    """Print what each run ended with."""
    lines, width = compare(runs), Console().width
    # What is cut off reads like a number: where not all runs have room side by side, more tables follow.
    across = max(1, (width - _TITLE) // _CELL)
    for start in range(0, len(runs), across):
        Console().print(_numbers(runs, lines, range(start, min(start + across, len(runs)))))
    for run in runs:
        if run.others:
            typer.echo(
                f"{run.name} holds logs of more than one training; shown is the newest, {run.source}, and not "
                f"{', '.join(map(str, run.others))}."
            )
    for of in probabilities.kinds([run.histograms for run in runs]):
        found = [(run, change) for run in runs if (change := probabilities.change_of(run.histograms, of)) is not None]
        across = max(1, (width - _BAND) // _CHANGE)
        for start in range(0, len(found), across):
            Console().print(_probabilities(found[start : start + across], of))
    for name in without_statistics(runs):
        typer.echo(f"{name} logged no dft/*: train it with `loss: nll`, which is plain SFT with these statistics.")
    if len(runs) > 1:
        typer.echo(NLL_ALONE)


def _numbers(runs: Sequence[Run], lines: Sequence[Line], shown: Sequence[int]) -> Table:
    """Return what some of the runs ended with; the best of all are bold."""
    table = Table("")
    for number in shown:
        table.add_column(escape(runs[number].name), min_width=_CELL - 3, overflow="fold")
    table.add_row("loss", *(Text(runs[number].loss or "not recorded") for number in shown))
    for line in lines:
        values = [(number, line.values[number]) for number in shown]
        cells = [
            Text("" if value is None else f"{value:.4g}", style="bold" if number in line.best else "")
            for number, value in values
        ]
        table.add_row(line.title, *cells)
    if Console().measure(table, options=Console().options.update(max_width=_ANY)).maximum > Console().width:
        table.columns[0].width = max(_TITLE - 24, Console().width - 4 - _CELL * len(shown))
    return table


def require_plotly() -> None:
    """Say that plotly is missing, if it is.

    Raises:
        SettingsError: it is.
    """
    plotly_script()


def _probabilities(found: Sequence[tuple[Run, Change]], of: str) -> Table:
    """Return the shares of targets in a few bands of probability, first and last."""
    table = Table(
        Column("probability", no_wrap=True), title=f"Targets by their probability, first count -> last ({escape(of)})"
    )
    for run, change in found:
        head = f"{run.name}, step {change.before.step} -> {change.after.step}"
        table.add_column(escape(head), min_width=_CHANGE - 3, overflow="fold")
    shares = [[one.shares(probabilities.COARSE) for one in (change.before, change.after)] for _, change in found]
    for band, (low, high) in enumerate(pairwise(probabilities.COARSE)):
        table.add_row(
            f"{low:g} to {high:g}", *(f"{before[band]:.1%} -> {after[band]:.1%}" for before, after in shares)
        )
    return table


def write(runs: Sequence[Run], out: Path, samples: Samples | None = None) -> Path:
    """Write the page; where a file of that name is there, beside it under another.

    Raises:
        SettingsError: it cannot be written, or plotly is not installed.
    """
    if out.is_dir():
        raise SettingsError([f"--out {out} is a folder. Name a file in it: {out / 'dft-report.html'}."])
    # The name of a folder may hold bytes that are no text.
    text = render(runs, samples).encode("utf-8", "replace")
    path, number = out, 2
    while path.exists():
        path, number = out.with_stem(f"{out.stem}-{number}"), number + 1
    try:
        path.write_bytes(text)
    except OSError as error:
        raise SettingsError([f"--out {out} cannot be written ({error.strerror}). Name a file of yours."]) from error
    return path
