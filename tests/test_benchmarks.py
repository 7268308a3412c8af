"""The benchmarks run, at a size at which their numbers mean nothing. No test asserts a time."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SIZE = ["--tokens", "32", "--hidden", "16", "--vocab", "512", "--rounds", "2"]


def benchmarks(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    out = tmp_path_factory.mktemp("numbers")
    benchmarks("run", *SIZE, "--case", "half", "--no-memory", "--out", str(out))
    benchmarks("run", *SIZE, "--case", "logits-bf16", "--no-time", "--out", str(out))
    return out


@pytest.mark.slow
def test_a_case_times_ours_its_peers_and_the_bare_products_in_every_round(numbers):
    found = json.loads((numbers / "time-half.json").read_text())["numbers"]
    assert len(found["ours (kernel: auto)"]["seconds"]) == 2
    assert len(found["bare GEMMs"]["seconds"]) == 2
    assert len(found["cross-entropy (SFT, logits in float32)"]["seconds"]) == 1
    assert found["ours (kernel: auto)"]["errors"]["loss"] < 1e-6
    assert found["ours (kernel: auto)"]["errors"]["hidden"] < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is not None, reason="TRL is installed")
def test_a_peer_that_is_not_installed_is_a_row_that_says_so(numbers, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Mine\n\n<!-- measured: begin -->\nold\n<!-- measured: end -->\n\nMy words.\n")
    benchmarks("report", "--folder", str(numbers), "--into", str(page))
    text = page.read_text()
    assert "| TRL | not here: ModuleNotFoundError: No module named 'trl' |" in text
    assert text.startswith("# Mine\n")
    assert text.endswith("\n\nMy words.\n") or text.endswith("\nMy words.\n")
    assert "old" not in text


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory on a CPU is measured on Linux only")
def test_memory_is_measured_in_a_process_of_its_own(numbers):
    found = json.loads((numbers / "memory-logits-bf16.json").read_text())["numbers"]
    assert found["ours, in place"]["bytes"] >= 0
    assert "missing" in found["ms-swift"] or found["ms-swift"]["bytes"] >= 0
