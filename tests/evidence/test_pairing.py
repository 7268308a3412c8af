"""Runs that began from another base model are set aside, whole, and made again."""

from __future__ import annotations

import json

from evidence.cells import cells
from evidence.grid import Grid
from evidence.offline.grid import OfflineGrid
from evidence.pairing import ASIDE, outdated, set_aside, unpaired
from evidence.rows import Rows
from evidence.run import Run


def row(loss, nll=None, part="core", cell="a cell", seed=1, **more):
    key = f"{part} | {cell} | {loss} | {seed}"
    before = {"before": {"nll": nll}} if nll is not None else {}
    return {"key": key, "part": part, "cell": cell, "loss": loss, "seed": seed, **before, **more}


def by_key(*rows):
    return {one["key"]: one for one in rows}


def test_the_last_base_of_a_cell_and_a_seed_counts():
    rows = by_key(
        row("SFT", 9.1),
        row("DFT", 8.5),
        row("focal", 8.5, part="family"),
        row("SFT", 9.1, seed=2),
        row("SFT", 9.1, cell="b"),
    )
    assert unpaired(rows) == ["core | a cell | SFT | 1"]


def test_rows_without_what_a_base_makes_of_the_demonstrations_are_told_apart_by_its_name():
    rows = by_key(
        row("RFT", base="a", part="offline"), row("DFT", base="b", part="offline"), row("GRPO", part="offline")
    )
    assert unpaired(rows) == ["offline | a cell | RFT | 1"]
    assert unpaired(by_key(row("SFT", 1.0, part="real"), row("DFT", 2.0, part="real"))) == []


def test_a_reported_row_at_a_rate_that_is_not_chosen_is_outdated():
    grid, offline = Grid(cells()), OfflineGrid()
    rows = {}
    for rate, share in ((3e-4, 0.5), (1e-3, 0.9), (3e-3, 0.2)):
        run = Run("rates", cells()[2], "DFT", rate, 0)
        accuracy = {"taught@0": share, "taught@1": share}
        rows[run.key] = {"key": run.key, "part": "rates", "loss": "DFT", "rate": rate, "seed": 0, "accuracy": accuracy}
        rows[run.key]["right"] = {"mean_prob": 0.5}
    for rate in (3e-4, 1e-3):
        run = Run("core", cells()[0], "DFT", rate, 1)
        rows[run.key] = {
            "key": run.key,
            "part": "core",
            "cell": cells()[0].name,
            "loss": "DFT",
            "rate": rate,
            "seed": 1,
        }
    rows["real-probe | facts"] = {"key": "real-probe | facts", "part": "real-probe", "cell": "facts", "seed": 1}
    assert outdated(rows, grid, offline) == [Run("core", cells()[0], "DFT", 3e-4, 1).key]
    # While a run that chooses is missing, nothing is.
    del rows[Run("rates", cells()[2], "DFT", 3e-3, 0).key]
    assert outdated(rows, grid, offline) == []


def test_what_is_set_aside_is_kept_and_the_rest_stays_as_it_was(tmp_path):
    lines = [json.dumps(one) for one in (row("SFT", 9.1), row("DFT", 8.5), row("EAFT", 8.5))]
    (tmp_path / "core.jsonl").write_text("\n".join(lines) + "\n")
    set_aside(tmp_path, unpaired(Rows(tmp_path).all()))
    assert (tmp_path / "core.jsonl").read_text() == "\n".join(lines[1:]) + "\n"
    assert (tmp_path / ASIDE / "core.jsonl").read_text() == lines[0] + "\n"
    assert unpaired(Rows(tmp_path).all()) == []
