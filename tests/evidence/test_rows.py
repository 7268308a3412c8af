"""Rows outlive what kills the process that writes them, and two processes do not do the same run twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from evidence.claims import claim
from evidence.rows import Rows

ROOT = Path(__file__).parents[2]


def test_a_row_that_was_cut_off_is_none_and_spoils_no_other(tmp_path):
    rows = Rows(tmp_path / "rows")
    rows.append({"key": "a", "part": "core"}, tmp_path / "lock")
    with (tmp_path / "rows" / "core.jsonl").open("a") as file:
        file.write('{"key":"b","pa')
    assert list(rows.all()) == ["a"]
    rows.append({"key": "c", "part": "core"}, tmp_path / "lock")
    assert list(rows.all()) == ["a", "c"]


def test_a_run_that_another_process_has_claimed_is_not_to_be_had_until_that_ends(tmp_path):
    path = tmp_path / "lock"
    code = f"""
from pathlib import Path
from evidence.claims import claim
with claim(Path({json.dumps(str(path))})) as mine:
    print(mine, flush=True)
    input()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "True\n"
    with claim(path) as mine:
        assert not mine
    other.kill()
    other.communicate()
    with claim(path) as mine:
        assert mine
