"""The benchmarks run, at a size at which their numbers mean nothing. No test asserts a time."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import memory, shares, timing
from benchmarks.cases import Variant, cases
from benchmarks.problem import Shape

ROOT = Path(__file__).parents[1]
OURS = "ours (kernel: auto)"
SHAPE = Shape(tokens=32, hidden=16, vocab=512)


def absent():
    raise ModuleNotFoundError("No module named 'absent'")


def timed(key, rounds=2):
    """Time ours, and a peer that cannot be imported."""
    case = cases(SHAPE)[key]
    own = tuple(variant for variant in case.variants if variant.own)
    case = replace(case, variants=(*own, Variant("absent", absent)))
    return case, timing.measure(case, rounds=rounds, peer_rounds=1, say=lambda text: None)


def test_ours_and_the_bare_products_are_timed_in_every_round_and_checked_against_float64():
    _, found = timed("trained")
    assert len(found[OURS]["seconds"]) == 2
    assert len(found["bare GEMMs"]["seconds"]) == 2
    assert found[OURS]["errors"]["loss"] < 1e-6
    assert found[OURS]["errors"]["hidden"] < 1e-5
    assert found[OURS]["errors"]["weight"] < 1e-5


def test_the_clock_runs_around_one_call():
    """A second call would find logits that the first has overwritten."""
    calls = []
    assert timing.seconds(lambda: calls.append(1)) >= 0
    assert len(calls) == 1


def test_a_page_has_what_was_measured_and_why_a_peer_is_not_here(tmp_path):
    for key in ("frozen", "logits-bf16"):
        command._save(tmp_path / f"time-{key}.json", *timed(key))
    facts = {
        "device": "a CPU",
        "python": "3",
        "versions": {},
        "command": "python -m benchmarks run",
        "day": "2026-01-01",
    }
    (tmp_path / "machine.json").write_text(json.dumps({**facts, "shape": {"device": "cpu"}}))
    page = tmp_path / "page.md"
    page.write_text("# Mine\n\n<!-- measured: begin -->\nold\n<!-- measured: end -->\n\nMy words.\n")
    done = CliRunner().invoke(command.app, ["report", "--folder", str(tmp_path), "--into", str(page)])
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert "| absent | not here: ModuleNotFoundError: No module named 'absent' |" in text
    assert "| frozen head: extra memory | <= 64 MiB | not measured | |" in text
    assert "computes something else" not in text
    assert "old" not in text
    assert text.startswith("# Mine\n")
    assert text.endswith("\nMy words.\n")


@pytest.mark.skipif(sys.platform != "linux", reason="memory on a CPU is measured on Linux only")
def test_memory_is_measured_in_a_process_of_its_own(monkeypatch):
    monkeypatch.chdir(ROOT)
    case = cases(SHAPE)["logits"]
    assert memory.measure(case, "ours, in place", SHAPE, 1)["bytes"] >= 0


@pytest.mark.parametrize(
    ("name", "shapes", "part"),
    [
        ("aten::mm", [[2048, 576], [576, 49152]], shares.HEAD),
        ("aten::_log_softmax", [[2048, 49152], [], []], shares.LOGITS),
        ("aten::mm", [[2048, 576], [576, 1536]], shares.BODY),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", [[4, 9, 512, 64]], shares.ATTENTION),
        ("aten::silu", [[4, 512, 1536]], shares.REST),
        ("Optimizer.step#AdamW.step", (), shares.REST),
    ],
)
def test_an_operator_belongs_to_a_part_of_a_step(name, shapes, part):
    assert shares.share_of(name, shapes, 49152) == part
