"""Bad input: thousands of cases, the same ones each time, and every case that has ever broken the property."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")

from reliability.fuzz import page, verdict
from reliability.fuzz.found import FOUND
from reliability.fuzz.run import Counting
from reliability.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_right_answer_or_an_error_of_ours(name):
    # In a process of its own: what is drawn depends on the modules that are loaded, and here on the tests before.
    command = [sys.executable, "-m", "reliability.fuzz", "again", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts, made = json.loads(done.stdout), TARGETS[name].in_tests
    # One without bound of memory would have had a MemoryError (`limit_memory`), which is a fault.
    # Cases that are all refused, or all taken, would show nothing.
    assert counts["answered"] > made / 20
    assert counts["refused"] > made / 20
    assert counts["answered"] + counts["refused"] >= 0.9 * made


def test_there_are_ten_thousand():
    assert sum(target.in_tests for target in TARGETS.values()) >= 10_000


@pytest.mark.parametrize("found", FOUND, ids=[f"{one.target}: {one.given[:40]}" for one in FOUND])
def test_what_was_found_stays_mended(found):
    TARGETS[found.target].check(found.case)


BROKEN = {
    "a traceback": (lambda: [][0], "a traceback that is not ours: IndexError"),
    "a hang": (lambda: [None for _ in iter(int, 1)], "not over after"),
    "nothing said": (lambda: raised(""), "an empty"),
    "nothing named": (lambda: raised("something is wrong"), "names none of loss"),
    "all said": (lambda: raised("loss" * 50_000), "a message of"),
}


def raised(text):
    raise verdict.SettingsError([text])


@pytest.mark.parametrize(("call", "said"), BROKEN.values(), ids=BROKEN)
def test_what_breaks_the_property_is_seen(call, said, monkeypatch):
    monkeypatch.setattr(verdict, "CPU_SECONDS", 0.2)
    with pytest.raises(verdict.FaultError, match=said):
        verdict.judged(call, ["loss"])


def test_a_run_goes_on_after_a_fault_and_counts_it():
    counting = Counting("settings", "hypothesis", 1)
    counting.target = replace(counting.target, check=lambda case: 1 // case)
    for case in (0, 0, 1):
        counting(case)
    row = counting.done()
    assert (row.cases, row.faults, row.refused) == (3, 2, 1)
    assert [one["case"] for one in row.found] == ["0"]


def test_the_page_adds_up_the_rows():
    row = Counting("settings", "atheris", 1).done().as_dict() | {"cases": 7, "answered": 4, "refused": 3}
    assert "| all | | 14 | 14 | 8 | 6 | 0 |" in page.written([row, row])


def test_the_page_says_what_is_not_mended_and_nothing_of_what_is():
    row = Counting("settings", "hypothesis", 1).done().as_dict()
    new = {"kind": "KeyError new.py:1", "said": "a traceback that is not ours", "case": "{}"}
    known = [{"kind": kind, "said": said, "case": ""} for one in FOUND for kind, said in one.counted]
    _, _, left = page.written([row | {"found": [new, *known]}]).partition("Not mended:\n\n")
    assert left == f"- `{new['kind']}`: {new['said']}\n"
