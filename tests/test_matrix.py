"""A diagonal of the matrix: each way to split a run once, each thing that a run may be made of once.

The whole is `nox -s matrix`; what it found stands in docs/reliability/matrix.md.
"""

from __future__ import annotations

import importlib.util
import json

import pytest

from reliability.matrix import mutations, names
from reliability.matrix.__main__ import DOCS
from reliability.matrix.launch import Launcher
from reliability.matrix.lines import Lines
from reliability.matrix.page import text

CELLS = names.diagonal()


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """Of all cells: a start of processes takes seconds, a cell one."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    found = []
    Launcher(tmp_path_factory.mktemp("matrix"), found.append).run(CELLS, together=True)
    return {(line["row"], line["column"]): line for line in found}


def test_each_row_and_each_column_is_on_the_diagonal():
    assert [row for row, _ in CELLS] == list(names.ROWS)
    assert {column for _, column in CELLS} == set(names.COLUMNS)


@pytest.mark.parametrize("name", mutations.MUTATIONS)
def test_what_is_broken_on_purpose_is_there_and_was_seen(name, monkeypatch):
    broken = []
    monkeypatch.setattr(mutations, "_replace", lambda owner, name, value: broken.append(name in vars(owner)))
    mutations.MUTATIONS[name]()
    assert broken == [True]
    lines = Lines(DOCS / "matrix.jsonl").all(name).values()
    assert any(names.is_red(line) for line in lines), "python -m reliability.matrix mutate"


@pytest.mark.slow
@pytest.mark.parametrize(("row", "column"), [(row.name, column) for row, column in CELLS])
def test_a_cell_of_the_diagonal_is_that_of_one_process(row, column, lines):
    line = lines[row, column]
    assert not names.is_red(line), line


def cell(outcome, column="LoRA", said="", **gaps):
    return {"row": "DDP", "column": column, "outcome": outcome, "text": said, **gaps}


@pytest.mark.parametrize(
    ("line", "red"),
    [
        (cell("equal"), False),
        (cell("refused", said="UnsupportedModelError: no"), False),
        (cell("impossible"), False),
        (cell("differs"), True),
        (cell("failed"), True),
        (cell("hangs"), True),
        (cell("refused", names.BYPASSED, "NotActiveError: not ours"), False),
        (cell("refused", names.BYPASSED, "ConflictError: the whole row"), False),
        (cell("refused", names.BYPASSED, "UnsupportedModelError: another reason"), True),
        (cell("differs", names.BYPASSED), True),
        (cell("equal", names.BYPASSED), True),
    ],
)
def test_what_is_a_fault(line, red):
    assert names.is_red(line) == red


def test_the_page_says_what_was_not_run_and_a_newer_line_counts(tmp_path):
    lines = Lines(tmp_path / "lines.jsonl")
    gaps = {"loss": 1e-7, "weights": 2e-7, "statistics": 3e-7}
    lines.put(cell("differs", **{**gaps, "weights": 1.0}))
    lines.put(cell("equal", **gaps))
    lines.put(cell("impossible", "QLoRA", "ValueError: Cannot flatten"))
    lines.put(cell("differs", "full, tied", **gaps), "divisor")
    assert len([json.loads(line) for line in lines.file.read_text().splitlines()]) == 3
    page = text(lines)
    assert "2 of 442 cells were run: 1 equal, 1 impossible. Faults: 0." in page
    row = next(line for line in page.splitlines() if line.startswith("| DDP | 2 |"))
    assert "| 3e-07 |" in row
    assert "impossible (1)" in row
    assert row.count("not run") == len(names.COLUMNS) - 2
    assert "1. `ValueError: Cannot flatten`" in page
    assert "| a rank divides by its own targets, not by those of all ranks | 1 of 1 |" in page


def test_a_hang_and_a_rank_that_failed_alone_are_told_apart(tmp_path):
    launcher = Launcher(tmp_path, print, limit=7)
    launcher.here, launcher.codes = tmp_path, [1, -9]
    (tmp_path / "said").mkdir()
    (tmp_path / "said" / "1-0.json").write_text(json.dumps({"kind": "failed", "text": "ValueError: mine"}))
    assert launcher._what_stopped() == {"outcome": "failed", "text": "one rank alone: ValueError: mine"}
    (tmp_path / "stacks-1.txt").write_text("Timeout (0:00:07)!\nThread 1: in all_reduce")
    found = launcher._what_stopped()
    assert (found["outcome"], found["text"]) == ("hangs", "nothing for 7 s")
    assert "in all_reduce" in found["stacks"]["stacks-1.txt"]
