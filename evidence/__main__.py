"""`python -m evidence run`, then `python -m evidence page`. See README.md."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, cast

import torch
import typer

from evidence import page
from evidence.again import beside
from evidence.cells import cells
from evidence.grid import CORE_PART, FAMILY_PART, Grid
from evidence.offline.grid import PART as OFFLINE
from evidence.offline.grid import OfflineGrid
from evidence.pairing import ASIDE, outdated, set_aside, unpaired
from evidence.probed import PART as PROBE
from evidence.probed import ProbeGrid
from evidence.real.configs import CONFIGS, Host
from evidence.real.grid import RealGrid
from evidence.real.training import SHORT
from evidence.rows import Rows
from evidence.run import Scale
from evidence.smoke import SMOKE_GRID, SMOKE_OFFLINE, SMOKE_SCALE
from evidence.study import Study
from evidence.tables import chosen_rates, family, hypothesis
from evidence.working import Work

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "evidence.md"
REAL = "real"
PARTS = (CORE_PART, FAMILY_PART, PROBE, REAL, OFFLINE)


def _say(text: str) -> None:
    typer.echo(f"{time.strftime('%H:%M:%S')} {text}")


@app.callback()
def main() -> None:
    """What the loss does to a model: a controlled study."""


@app.command()
def run(
    part: Annotated[
        str | None, typer.Option(help="Only this: core, family; or probe, real, offline, which no other run makes.")
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Every part once, at a size at which nothing is learned.")
    ] = False,
    limit_minutes: Annotated[float, typer.Option(help="After which no further run begins.")] = math.inf,
    host: Annotated[str, typer.Option(help="That trains in --part real: TRL, Axolotl or LLaMA-Factory.")] = "TRL",
    threads: Annotated[int, typer.Option(help="Of a CPU; the rows were made with one.")] = 1,
    pause_file: Annotated[Path | None, typer.Option(help="While it is there, nothing is computed.")] = None,
    rows: Annotated[Path | None, typer.Option(help="Folder of the rows; those of --smoke go elsewhere.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of base models and locks.")] = HERE / "out",
) -> None:
    """Make the runs that are not there yet. It may be stopped at any time, and run by several processes at once."""
    if part not in (None, *PARTS):
        raise typer.BadParameter(f"no part {part}; there are {', '.join(PARTS)}")
    torch.set_num_threads(threads)
    folder = rows or (out / "smoke-rows" if smoke else HERE / "rows")
    if host not in CONFIGS:
        raise typer.BadParameter(f"no host {host}; there are {', '.join(CONFIGS)}")
    grid, scale = (SMOKE_GRID, SMOKE_SCALE) if smoke else (Grid(cells()), Scale())
    if part in (PROBE, REAL, OFFLINE):
        made = {PROBE: _probe, REAL: _real, OFFLINE: _offline}[part](smoke)
        grid = replace(made, host=cast("Host", host)) if isinstance(made, RealGrid) else made
    work = Work(grid, scale, Rows(folder), out / "smoke" if smoke else out, part, pause_file, _say)
    made = work.go_on(limit_minutes * 60)
    left = len(grid.pending(work.rows.all(), part))
    _say(f"{made} runs made, {len(work.failed)} failed, {left} of those that can be made now are left")
    if work.failed:
        raise typer.Exit(1)


def _probe(smoke: bool) -> ProbeGrid:
    """Return the part that looks at each cell before training."""
    return ProbeGrid(SMOKE_GRID.cells, SMOKE_GRID.seeds) if smoke else ProbeGrid()


def _real(smoke: bool) -> RealGrid:
    """Return the part that trains a real model; what it needs is imported here."""
    from demo.model import prepare_model

    whole = RealGrid(prepare_model)
    return replace(whole, length=SHORT, seeds=whole.seeds[:1], cells=whole.cells[:1]) if smoke else whole


def _offline(smoke: bool) -> OfflineGrid:
    """Return the part in which models are trained on answers of their own."""
    if find_spec("trl") is None:
        raise typer.BadParameter("--part offline trains by TRL, too: pip install -e '.[trl]'")
    return SMOKE_OFFLINE if smoke else OfflineGrid()


@app.command()
def pair(
    rows: Annotated[Path, typer.Option(help="Folder of the rows.")] = HERE / "rows",
) -> None:
    """Set rows aside that began from another base model than later ones of their cell and seed, or at another rate.

    A base model that was not kept is trained anew, and is another one on another processor. `run` makes these again;
    `pair` after it sets aside what stands at a rate that is not chosen any more. Not while `run` is running.
    """
    found = Rows(rows).all()
    # A rate is judged once all that choose it are pairs.
    keys = unpaired(found) or outdated(found, Grid(cells()), OfflineGrid())
    set_aside(rows, keys)
    typer.echo("\n".join([*keys, f"{len(keys)} rows set aside, in {rows / ASIDE}"]))


@app.command()
def again(
    key: Annotated[str, typer.Argument(help='Of a row: "core | style unseen, 40% wrong | DFT | 0.001 | 1".')],
    rows: Annotated[Path, typer.Option(help="Folder of the rows.")] = HERE / "rows",
    out: Annotated[Path, typer.Option(help="Folder of base models.")] = HERE / "out",
    smoke: Annotated[bool, typer.Option("--smoke", help="The rows are of `run --smoke`.")] = False,
) -> None:
    """Make one run of the study again, and show it beside its row; nothing is written but the base model."""
    torch.set_num_threads(1)
    study, scale = _study(rows, smoke), SMOKE_SCALE if smoke else Scale()
    try:
        typer.echo(beside(key, study.rows, study.grid.cells, scale, (out / "smoke" if smoke else out) / "bases"))
    except (KeyError, ValueError) as error:
        raise typer.BadParameter(str(error.args[0])) from None


@app.command()
def tables(
    rows: Annotated[Path, typer.Option(help="Folder of the rows.")] = HERE / "rows",
    smoke: Annotated[bool, typer.Option("--smoke", help="They are of `run --smoke`.")] = False,
) -> None:
    """Print the tables, as Markdown."""
    study = _study(rows, smoke)
    shown = {
        "greedy": hypothesis(study, "taught@0"),
        "sampled at temperature 1": hypothesis(study, "taught@1"),
        "family": family(study),
        "rates": chosen_rates(study),
    }
    for title, table in shown.items():
        typer.echo(f"{title}\n\n{table}\n")


@app.command()
def plots(
    rows: Annotated[Path, typer.Option(help="Folder of the rows.")] = HERE / "rows",
    into: Annotated[Path, typer.Option(help="A folder.")] = HERE.parent / "docs" / "evidence",
    smoke: Annotated[bool, typer.Option("--smoke", help="The rows are of `run --smoke`.")] = False,
) -> None:
    """Draw the pictures, as SVG."""
    for path in page.draw(_study(rows, smoke), into):
        typer.echo(path)


@app.command("page")
def write_page(
    rows: Annotated[Path, typer.Option(help="Folder of the rows.")] = HERE / "rows",
    into: Annotated[Path, typer.Option(help="A file; its pictures go into a folder beside it.")] = PAGE,
    smoke: Annotated[bool, typer.Option("--smoke", help="The rows are of `run --smoke`.")] = False,
) -> None:
    """Write docs/evidence.md and its pictures."""
    for path in page.write(_study(rows, smoke), into):
        typer.echo(path)


def _study(rows: Path, smoke: bool) -> Study:
    return Study(SMOKE_GRID if smoke else Grid(cells()), Rows(rows).all())


if __name__ == "__main__":
    app()
