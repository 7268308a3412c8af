"""docs/evidence.md says what the rows say: no more, and nothing older."""

from __future__ import annotations

import json
from pathlib import Path

from evidence import page
from evidence.__main__ import PAGE, _study
from evidence.cells import cells
from evidence.grid import Grid
from evidence.offline.grid import CELLS, PART, OfflineGrid, OfflineRun
from evidence.pairing import outdated, unpaired
from evidence.probed import ProbeGrid, ProbeRun
from evidence.run import Run

ROOT = Path(__file__).parents[2]
STUDY = _study(ROOT / "evidence" / "rows", smoke=False)


def test_the_page_and_its_pictures_are_made_of_the_rows():
    assert PAGE.read_text(encoding="utf-8") == page.render(STUDY, "evidence"), "python -m evidence page"
    beside = PAGE.with_name("evidence-rates.md").read_text(encoding="utf-8")
    assert beside == page.rates(STUDY), "python -m evidence page"
    drawn = {path.name: path.read_text(encoding="utf-8") for path in (PAGE.parent / "evidence").iterdir()}
    assert drawn == page.pictures(STUDY), "python -m evidence page"


def test_runs_of_a_cell_and_a_seed_began_from_the_same_base():
    assert unpaired(STUDY.rows) == [], "python -m evidence pair, and run"


def test_reported_runs_are_at_the_rate_that_was_chosen():
    assert outdated(STUDY.rows, STUDY.grid, OfflineGrid()) == [], "python -m evidence pair, and run"


def _offline(row):
    assert row["seed"] in (0, *OfflineGrid().seeds)
    (cell,) = (cell for cell in CELLS if cell.name == row["cell"])
    return OfflineRun(cell, row["loss"], row["rate"], row["seed"])


def test_each_row_is_a_run_that_was_planned():
    assert STUDY.rows
    named = {cell.name: cell for cell in cells()}
    for key, row in STUDY.rows.items():
        if row["part"] in ("real", "real-probe"):
            continue
        if row["part"] == "probe":
            assert ProbeRun(named[row["cell"]], row["seed"]).key == key
            assert row["seed"] in ProbeGrid().seeds
            continue
        if row["part"] == PART:
            assert _offline(row).key == key
            assert row["dials"] == json.loads(json.dumps(_offline(row).dials))
            continue
        run = Run(row["part"], named[row["cell"]], row["loss"], row["rate"], row["seed"])
        assert run.key == key
        assert run.seed in ((0,) if row["part"] == "rates" else Grid(cells()).seeds)
        assert row["dials"] == json.loads(json.dumps(run.dials))
