"""At a size at which nothing is learned: the study runs, goes on where it was stopped, and a page comes out."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from evidence import __main__ as command
from evidence.rows import Rows
from evidence.run import Run
from evidence.smoke import SMOKE_GRID


def invoke(*args):
    done = CliRunner().invoke(command.app, list(map(str, args)))
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
def test_every_part_runs_once_and_a_page_comes_out(tmp_path, monkeypatch):
    run = ("run", "--smoke", "--out", tmp_path, "--rows", tmp_path / "rows")
    executed, execute = [], Run.execute

    def stopped_after(count):
        def counting(self, *args):
            if len(executed) == count:
                raise KeyboardInterrupt
            executed.append(self.key)
            return execute(self, *args)

        return counting

    monkeypatch.setattr(Run, "execute", stopped_after(5))
    assert CliRunner().invoke(command.app, list(map(str, run))).exit_code != 0
    assert len(Rows(tmp_path / "rows").all()) == 5
    monkeypatch.setattr(Run, "execute", stopped_after(None))
    assert "0 failed, 0 of those that can be made now are left" in invoke(*run)

    rows = Rows(tmp_path / "rows").all()
    assert len(executed) == len(set(executed)) == len(rows)
    lines = sum(len(path.read_text().splitlines()) for path in (tmp_path / "rows").iterdir())
    assert lines == len(rows)
    assert SMOKE_GRID.pending(rows) == []
    assert {row["part"] for row in rows.values()} == {"rates", "core", "family"}

    assert "0 failed, 0 of those that can be made now are left" in invoke(*run, "--part", "probe")
    probed = [row for row in Rows(tmp_path / "rows").all().values() if row["part"] == "probe"]
    assert len(probed) == len(SMOKE_GRID.cells) * len(SMOKE_GRID.seeds)

    key = next(key for key, row in rows.items() if row["part"] == "core" and row["loss"] == "DFT")
    table = invoke("again", key, "--smoke", "--out", tmp_path, "--rows", tmp_path / "rows")
    assert f"| base | {rows[key]['base']} | {rows[key]['base']} |" in table
    for name, was in rows[key]["accuracy"].items():
        assert f"| {name} | {100 * was:.1f} | {100 * was:.1f} |" in table
    assert len(Rows(tmp_path / "rows").all()) == len(rows) + len(probed)

    assert "| alpha 0.5 |" in invoke("tables", "--smoke", "--rows", tmp_path / "rows")
    page = tmp_path / "evidence.md"
    invoke("page", "--smoke", "--rows", tmp_path / "rows", "--into", page)
    assert f"All of its {len(rows)} runs are there" in page.read_text()
    pictures = list((tmp_path / "evidence").glob("*.svg"))
    assert {"beside.svg", "crossing-greedy.svg", "pass-at-k-1.svg"} <= {path.name for path in pictures}
    for path in pictures:
        assert f"({Path('evidence') / path.name})" in page.read_text()
        ElementTree.parse(path)


def test_a_part_that_is_none_is_named():
    done = CliRunner().invoke(command.app, ["run", "--part", "cores"])
    assert done.exit_code == 2
    assert "core, family" in done.output


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("core | style unseen, 40% wrong | DFT | 5 | 1", "there are 'core | style unseen, 40% wrong | SFT"),
        ("nonsense", "see evidence/rows"),
        ("offline | offline, well learned | base | 0 | 1", "of the part offline"),
    ],
)
def test_a_run_that_cannot_be_made_again_is_named(key, said):
    done = CliRunner().invoke(command.app, ["again", key], env={"COLUMNS": "400", "TERM": "dumb"})
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


@pytest.mark.skipif(find_spec("trl") is not None, reason="tests/hosts/trl/test_evidence.py runs it there")
def test_the_offline_part_says_what_it_lacks():
    done = CliRunner().invoke(command.app, ["run", "--part", "offline"])
    assert done.exit_code == 2
    assert "trl" in done.output
