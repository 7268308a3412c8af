"""`python -m reliability.matrix run`, `mutate`, `page`."""

from __future__ import annotations

import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from reliability.matrix import names, page
from reliability.matrix.launch import LIMIT, Launcher, Line
from reliability.matrix.lines import Lines

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
DOCS = Path(__file__).parents[2] / "docs" / "reliability"
MUTATIONS = "reduction", "divisor", "mask", "guard"


def _say(text: str) -> None:
    typer.echo(f"{time.strftime('%H:%M:%S')} {text}")


def _show(line: Line) -> None:
    measured = [f"{line[key]:.1e}" for key in ("loss", "weights", "statistics") if key in line]
    _say(f"  {line['row']} | {line['column']}: {line['outcome']} {' '.join(measured)} {line['text'][:160]}")


@app.command()
def run(
    only: Annotated[
        list[str] | None,
        typer.Option(help="Of the rows or columns that have this in their name; ROW|COLUMN: of both."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also the cells that have a line already.")] = False,
    red: Annotated[bool, typer.Option("--red", help="Also the cells whose line is a fault.")] = False,
    diagonal: Annotated[
        bool, typer.Option("--diagonal", help="A cell of each row, in as few starts as can be.")
    ] = False,
    limit: Annotated[int, typer.Option(help="Seconds for a cell.")] = LIMIT,
    stock: Annotated[bool, typer.Option("--stock", help="Of cells that differ, the stock loss too.")] = False,
    work: Annotated[Path | None, typer.Option(help="Folder in which runs of one process are kept.")] = None,
    lines: Annotated[Path, typer.Option(help="The file of lines.")] = DOCS / "matrix.jsonl",
) -> None:
    """Run the cells that have no line yet. It may be stopped at any time, and goes on where it was."""
    store = Lines(lines)
    there = store.all()
    words = [word.split("|") for word in only or []]
    pairs = [
        (row, column)
        for row, column in (names.diagonal() if diagonal else product(names.ROWS, names.COLUMNS))
        if (again or (row.name, column) not in there or (red and names.is_red(there[row.name, column])))
        and (not words or any(_asked(row.name, column, parts) for parts in words))
    ]

    if not pairs:
        _say("nothing to do: all lines are there; --again makes them anew, --only has to fit")

    def tell(line: Line) -> None:
        _show(line)
        store.put(line)

    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        Launcher(work or Path(folder), tell, limit=limit, stock=stock, say=_say).run(pairs, together=diagonal)
    faults = [key for key, line in store.all().items() if names.is_red(line)]
    _say(f"{len(store.all())} of {len(names.ROWS) * len(names.COLUMNS)} cells have a line, {len(faults)} are faults")
    if faults:
        raise typer.Exit(1)


def _asked(row: str, column: str, parts: list[str]) -> bool:
    """Match ROW|COLUMN, or one word in either."""
    if len(parts) == 2:
        return parts[0] in row and parts[1] in column
    return parts[0] in row or parts[0] in column


@app.command()
def mutate(
    only: Annotated[str | None, typer.Option(help="One of the mutations.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder in which runs of one process are kept.")] = None,
    lines: Annotated[Path, typer.Option(help="The file of lines.")] = DOCS / "matrix.jsonl",
) -> None:
    """Break one thing at a time, and see that the diagonal turns red."""
    unseen = []
    for mutation in [only] if only else MUTATIONS:
        found: list[Line] = []
        with tempfile.TemporaryDirectory() as folder:
            Launcher(work or Path(folder), found.append, mutation, say=_say).run(names.diagonal((2,)), together=True)
        for line in found:
            line.pop("stacks", None)
            Lines(lines).put(line, mutation)
        red = [line for line in found if names.is_red(line)]
        _say(f"{mutation} broken: {len(red)} of {len(found)} cells of the diagonal are red")
        unseen += [] if red else [mutation]
    if unseen:
        _say(f"not noticed: {', '.join(unseen)}")
        raise typer.Exit(1)


@app.command(name="page")
def write_page(
    lines: Annotated[Path, typer.Option(help="The file of lines.")] = DOCS / "matrix.jsonl",
    out: Annotated[Path, typer.Option(help="The page.")] = DOCS / "matrix.md",
) -> None:
    """Write the page of the lines."""
    out.write_text(page.text(Lines(lines)))


if __name__ == "__main__":
    app()
