"""`python -m reliability.load run`, then `python -m reliability.load page`. See the package."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from reliability.load import attaching, sizes
from reliability.load import page as page_
from reliability.load import soak as soak_

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
DOCS = Path(__file__).parents[2] / "docs" / "reliability"
ROWS, PAGE = DOCS / "load.jsonl", DOCS / "load.md"

SOAKS: dict[str, dict[str, Any]] = {
    "soak stock": {"loss": None},
    "soak dft": {"loss": "dft"},
    "soak traced": {"loss": "dft", "traced": True},
}


def _parts() -> list[str]:
    return [*SOAKS, "attach", "activate", *sizes.CASES]


@app.callback()
def main() -> None:
    """Long runs and large sizes."""


@app.command()
def run(
    steps: Annotated[int, typer.Option(help="Of each soak; the one that follows allocations makes a fifth.")] = 10_000,
    times: Annotated[int, typer.Option(help="How often is attached and detached.")] = 1000,
    only: Annotated[str | None, typer.Option(help="One part, by name.")] = None,
    rows: Annotated[Path, typer.Option(help="Where results are added; what stands there is not made again.")] = ROWS,
) -> None:
    """Make the parts that are not there yet, each in a process of its own."""
    rows.parent.mkdir(parents=True, exist_ok=True)
    for part in [only] if only else _parts():
        if any(row["part"] == part for row in page_.read(rows)):
            continue
        words = [sys.executable, "-m", "reliability.load", "part", part, "--steps", str(steps), "--times", str(times)]
        made = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        with rows.open("a", encoding="utf-8") as file:
            file.write(made + "\n")
        typer.echo(f"{time.strftime('%H:%M:%S')} {part}")


@app.command()
def part(name: str, steps: int = 10_000, times: int = 1000) -> None:
    """Make one part in this process, and print its row."""
    torch.set_num_threads(1)
    if name in SOAKS:
        traced = SOAKS[name].get("traced", False)
        steps = steps // 5 if traced else steps
        row = soak_.soak(**SOAKS[name], steps=steps, every=max(1, steps // 100))
    elif name == "attach":
        row = attaching.of_model(times)
    elif name == "activate":
        row = attaching.of_trainer(times)
    else:
        make, arguments = sizes.CASES[name]
        row = make(**arguments)
    typer.echo(json.dumps({"part": name, **row}))


@app.command()
def page(rows: Annotated[Path, typer.Option()] = ROWS, to: Annotated[Path, typer.Option()] = PAGE) -> None:
    """Write the page and its pictures."""
    found = page_.read(rows)
    for name, picture in page_.pictures(found).items():
        (to.parent / name).write_text(picture, encoding="utf-8")
    to.write_text(page_.written(found), encoding="utf-8")


if __name__ == "__main__":
    app()
