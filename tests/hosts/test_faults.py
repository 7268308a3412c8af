"""The cheapest of `reliability.faults`, in every run of the tests; all of them: `nox -s faults`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from reliability.faults import __main__ as command
from reliability.faults import cells, page, trying

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.host


@pytest.mark.parametrize("cell", cells.CHEAP, ids=lambda cell: cell.key)
def test_nothing_is_lost(cell, tmp_path):
    row = trying.tried(cell, tmp_path)
    assert row["passed"], row


def test_the_page_is_made_of_the_rows():
    rows = list(command.read().values())
    assert rows
    assert command.PAGE.read_text() == page.render(rows), "python -m reliability.faults page"
    assert all(row["passed"] for row in rows)


def test_each_test_that_the_page_names_is_there():
    for where, name in (test.split("::") for tests in cells.TESTED.values() for _, test in tests):
        tree = ast.parse((ROOT / "tests" / where).read_text())
        named = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in named, where


def test_a_row_that_is_not_as_it_must_be_is_seen():
    cell = next(cell for cell in cells.CELLS if cell.fault == cells.RANK)
    good = {"ended": [1, -9], "losses": 0.0, "weights": 0.0, "whole": [1, 2], "left_in_out": []}
    assert trying.wrong(cell, good) is None
    for change in ({"ended": [0, -9]}, {"losses": 1e-3}, {"weights": 1e-3}, {"whole": [3]}, {"left_in_out": ["x"]}):
        assert trying.wrong(cell, {**good, **change}) is not None
