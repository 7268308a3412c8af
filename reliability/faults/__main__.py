"""`python -m reliability.faults run` in each host's environment, then `python -m reliability.faults page`."""

from __future__ import annotations

import json
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from reliability.faults import cells, hosts, page, trying
from reliability.faults.victim import ROOT

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
ROWS = ROOT / "docs" / "reliability" / "faults.jsonl"
PAGE = ROWS.with_suffix(".md")
VERSIONED = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "trl",
    "axolotl",
    "llamafactory",
    "ms-swift",
    "verl",
    "unsloth",
)


@app.callback()
def main() -> None:
    """What a bad day does to a run."""


@app.command()
def run(
    only: Annotated[str, typer.Option(help="Only cells whose key has this in it.")] = "",
    again: Annotated[bool, typer.Option("--again", help="Also those that have a row.")] = False,
    limit_minutes: Annotated[float, typer.Option(help="After which no further cell begins.")] = 1e9,
    pause_file: Annotated[Path | None, typer.Option(help="While it is there, no further cell begins.")] = None,
    kept: Annotated[Path, typer.Option("--rows", help="Where rows are kept.")] = ROWS,
) -> None:
    """Try the faults of the hosts that are installed here. Rows are kept as they are made."""
    there, begun, failed, tries = hosts.installed(), time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as place:
        for cell in cells.CELLS:
            rows = read(kept)
            done = rows.get(cell.key, {}).get("passed", False)
            if cell.host not in there or only not in cell.key or (done and not again):
                continue
            while pause_file is not None and pause_file.exists():
                time.sleep(5)
            if time.monotonic() - begun > 60 * limit_minutes:
                break
            row = {**trying.tried(cell, Path(place)), "versions": versions()}
            failed, tries = failed + (not row["passed"]), tries + 1
            write({**read(kept), cell.key: row}, kept)
            typer.echo(f"{time.strftime('%H:%M:%S')} {cell.key}: {row.get('problem', 'as it must be')}")
    if not tries:
        typer.echo(
            f"nothing to do for {', '.join(there)}: the rows are there; --again makes them anew, --only has to fit"
        )
    raise typer.Exit(min(failed, 1))


@app.command("page")
def write_page() -> None:
    """Write docs/reliability/faults.md from the rows."""
    PAGE.write_text(page.render(list(read().values())), encoding="utf-8")


def versions() -> dict[str, str]:
    """Return the versions of what is installed here."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def read(path: Path = ROWS) -> dict[str, trying.Row]:
    """Return the rows by key."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {row["key"]: row for row in map(json.loads, lines)}


def write(rows: dict[str, trying.Row], path: Path = ROWS) -> None:
    """Write the rows in the order of the cells."""
    order = [cell.key for cell in cells.CELLS]
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = sorted((row for key, row in rows.items() if key in order), key=lambda row: order.index(row["key"]))
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


if __name__ == "__main__":
    app()
