"""`python -m reliability.fuzz run --cases 1000000`, then `python -m reliability.fuzz page`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Annotated

import typer

from reliability.fuzz import page as page_
from reliability.fuzz.run import again as again_
from reliability.fuzz.run import batch, limit_memory
from reliability.fuzz.targets import TARGETS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
DOCS = Path(__file__).parents[2] / "docs" / "reliability"
ROWS, PAGE = DOCS / "fuzz.jsonl", DOCS / "fuzz.md"
ENGINES = ("hypothesis", "atheris")
BATCH = 1000
"""Cases of a batch; a run that is stopped loses the one that it is in."""
GUIDED_BATCH = 10_000
"""The same for atheris, which takes half a minute to start."""


@app.callback()
def main() -> None:
    """Bad input, made at random."""


@app.command()
def run(
    cases: Annotated[int, typer.Option(help="In all; those that stand in the rows already count.")] = 1_000_000,
    only: Annotated[str | None, typer.Option(help=f"One target: {', '.join(TARGETS)}.")] = None,
    guided: Annotated[bool, typer.Option(help="By coverage, with atheris, instead of by hypothesis.")] = False,
    minutes: Annotated[float, typer.Option(help="After which no further batch begins.")] = 1e9,
    pause_file: Annotated[Path | None, typer.Option(help="While it is there, nothing is made.")] = None,
    rows: Annotated[Path, typer.Option(help="Where counts are added.")] = ROWS,
) -> None:
    """Make the cases that are not there yet. It may be stopped at any time, and goes on where it was."""
    if only not in (None, *TARGETS):
        raise typer.BadParameter(f"no target {only}; there are {', '.join(TARGETS)}")
    warnings.simplefilter("error")
    limit_memory()
    engine, until = ENGINES[guided], time.monotonic() + 60 * minutes
    rows.parent.mkdir(parents=True, exist_ok=True)
    corpus = Path(tempfile.gettempdir()) / "dft-fuzz-corpus"
    while time.monotonic() < until and (missing := _missing(rows, cases, only, GUIDED_BATCH if guided else BATCH)):
        while pause_file is not None and pause_file.exists():
            time.sleep(5)
        name, number = missing
        made = [row["seed"] for row in page_.read(rows) if (row["target"], row["engine"]) == (name, engine)]
        seed = 1 + max(made, default=0)
        if guided:
            _guided(name, seed, number, rows, corpus / name)
        else:
            with rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(batch(name, seed, number).as_dict()) + "\n")
        row = page_.read(rows)[-1]
        said = f"{row['cases']} cases, {row['faults']} faults, {row['seconds']} s"
        typer.echo(f"{time.strftime('%H:%M:%S')} {name} {engine} {seed}: {said}")


def _missing(rows: Path, cases: int, only: str | None, largest: int) -> tuple[str, int] | None:
    """Return the target that lags behind most, and how many cases its next batch has; None: all are there."""
    made = dict.fromkeys(TARGETS, 0)
    for row in page_.read(rows):
        made[row["target"]] += row["cases"]
    named = [only] if only else list(TARGETS)
    wanted = {name: cases if only else round(cases * TARGETS[name].share) for name in named}
    short = {name: count - made[name] for name, count in wanted.items() if count > made[name]}
    if not short:
        return None
    name = min(short, key=lambda one: made[one] / wanted[one])
    return name, min(short[name], largest)


def _guided(name: str, seed: int, cases: int, rows: Path, corpus: Path) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "reliability.fuzz.guided", name, str(seed), str(cases), str(rows), str(corpus)]
    subprocess.run(words, check=True, stderr=subprocess.DEVNULL)


@app.command()
def again(target: Annotated[str, typer.Argument(help=f"One of {', '.join(TARGETS)}.")]) -> None:
    """Make the cases of the tests, the same ones each time; print the counts, or the traceback of a fault."""
    warnings.simplefilter("error")
    limit_memory()
    typer.echo(json.dumps(again_(target)))


@app.command()
def page(rows: Annotated[Path, typer.Option()] = ROWS, to: Annotated[Path, typer.Option()] = PAGE) -> None:
    """Write the page."""
    to.write_text(page_.written(page_.read(rows)), encoding="utf-8")


if __name__ == "__main__":
    app()
