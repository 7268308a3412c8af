"""The first hour on a GPU, in small and on a CPU: nothing in it is untested but the device."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks.gpu import exact, hour, scorer, sheet, table
from benchmarks.gpu.waits import Waits
from benchmarks.problem import HiddenInputs, Shape
from dft_plugin.kernels import Transform

ROOT = Path(__file__).parents[1]


def numbers(page):
    return json.loads(page.split("```json\n")[1].split("\n```")[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        ("machine", "exact", "trained", "waits", "budget", "cost"),
        pytest.param(("narrow", "eval"), marks=pytest.mark.full),
        pytest.param(("tests", "logits", "frozen", "lora", "qlora"), marks=pytest.mark.full),
    ],
)
def test_every_part_runs_here_in_small(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = tmp_path / "page.md"
    words = ["gpu", "--device", "cpu", "--small", "--out", str(page)]
    for part in parts:
        words += ["--part", part]
    done = CliRunner().invoke(command.app, words)
    text = page.read_text()
    assert done.exit_code == 0, text
    assert "**failed" not in text
    assert "**far**" not in text
    found = numbers(text)
    assert set(found) == set(parts)
    assert "`python -m benchmarks gpu --device cpu --small --part " in text
    if "trained" in parts:
        ours = found["trained"]["found"]["ours (kernel: auto)"]
        assert len(ours["seconds"]) == 9
        assert set(ours["errors"]) == {"loss", "hidden", "weight"}
        assert found["cost"]["trained"]["measured"] > 0
        assert "| trained | scratch_mb: 1 (" in text
        assert found["waits"]["ours"]["operations"] > 0
        assert "Scored by: plain (a CPU has no other)." in text
        assert "Quack, cross-entropy | not here: ModuleNotFoundError" in text


def test_a_part_that_fails_says_how_it_ended_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    page, said = tmp_path / "page.md", []
    options = sheet.Options("no such device", True, str(tmp_path))
    ends = hour.take(options, ["machine", "cost"], page, 5, said.append)
    assert ends["machine"].startswith("failed, exit code 1")
    assert ends["cost"] == ""
    text = page.read_text()
    assert "device" in text.split("**failed, exit code 1; the end of its output:**")[1].split("(machine:")[0]
    assert "Traceback" in text or "RuntimeError" in text
    assert "Not run: the machine's ceilings were not measured." in text
    assert len(said) == 2


def test_rows_that_failed_are_counted_and_end_the_command_with_1(tmp_path, monkeypatch):
    """Every row of the part fails: no model can be made on such a device."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(command, "_require_device", lambda name: None)
    page = tmp_path / "page.md"
    words = ["gpu", "--device", "nowhere", "--small", "--part", "waits", "--out", str(page)]
    done = CliRunner().invoke(command.app, words)
    assert done.exit_code == 1
    assert "waits: " in done.output
    assert "done, 3 of 3 rows failed" in done.output
    assert "**done, 3 of 3 rows failed" in page.read_text()


def test_a_variant_of_ours_that_is_missing_is_a_failed_row_and_a_peer_is_not(tmp_path):
    found = sheet.Sheet(tmp_path / "part.json")
    table._write(found, {"ours": {"own": True, "missing": "boom"}, "a peer": {"own": False, "missing": "absent"}})
    kept = sheet.read(found.path)
    assert (kept["failed"], kept["rows"]) == (1, 2)
    assert "**failed: boom**" in kept["lines"][-2]
    assert "not here: absent" in kept["lines"][-1]


def test_warnings_of_a_part_that_ends_well_are_kept_and_a_failure_says_where_its_output_is():
    well = hour._end_of(0, 9, {"rows": 1, "failed": 0}, ["noise", "x.py:1: UserWarning: slow", "dft: without Triton"])
    assert well.how == ""
    assert well.words == ["x.py:1: UserWarning: slow", "dft: without Triton"]
    assert "x.py:1: UserWarning: slow" in well.lines
    assert hour._end_of(0, 9, {"rows": 1, "failed": 0}, ["noise"]).lines == []
    failed = hour._end_of(3, 9, {"rows": 0, "failed": 0}, ["noise", "last words"])
    assert failed.line == "failed, exit code 3 (the end of its output: on the page)"
    assert "last words" in failed.lines


def test_the_page_says_which_code_scored_and_why(tmp_path, capsys):
    from dft_plugin.kernels.compiled import say_without
    from dft_plugin.kernels.scoring import row_scorer

    row_scorer("cpu")
    found, said = sheet.Sheet(tmp_path / "part.json"), scorer.Reasons()
    logger = logging.getLogger("dft_plugin")
    logger.addHandler(said)
    try:
        say_without("the Triton kernel does not work", "cuda", RuntimeError("no compiler"))
    finally:
        logger.removeHandler(said)
    assert "no compiler" in capsys.readouterr().err
    scorer.write_scorer("cpu", found, said.reasons)
    line = "Scored by: plain (the Triton kernel does not work on cuda, going on without it: no compiler)."
    assert sheet.read(found.path)["lines"][-1] == line


def test_no_measurement_is_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = tmp_path / "out" / "page.md"
    page.parent.mkdir()
    page.write_text("measured before")
    words = ["gpu", "--device", "cpu", "--small", "--part", "cost", "--out", str(page)]
    for name in ("page-2.md", "page-3.md"):
        done = CliRunner().invoke(command.app, words)
        assert done.exit_code == 0
        assert "Not run: the machine's ceilings" in (page.parent / name).read_text()
        assert name in done.output.replace("\n", "")
    for minutes in ("0", "-3", "nan"):
        done = CliRunner().invoke(command.app, [*words, "--minutes", minutes])
        assert done.exit_code == 2
        assert "more than 0" in done.output
    assert page.read_text() == "measured before"
    assert len(list(page.parent.iterdir())) == 3


def test_a_part_sees_one_card_only():
    assert hour.one_card("cpu", {"A": "b"}) == ("cpu", {"A": "b"})
    assert hour.one_card("cuda", {}) == ("cuda", {"CUDA_VISIBLE_DEVICES": "0"})
    assert hour.one_card("cuda:1", {"CUDA_VISIBLE_DEVICES": "4,GPU-5"})[1] == {"CUDA_VISIBLE_DEVICES": "GPU-5"}


def test_a_time_limit_loses_nothing_that_was_found(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(hour.PARTS, "exact", replace(hour.PARTS["exact"], minutes=0.001))
    options = sheet.Options("cpu", True, str(tmp_path))
    sheet.Sheet(options.sheet("exact")).say("found before")
    ends = hour.take(options, ["exact", "cost"], tmp_path / "page.md", 0.2, lambda text: None)
    assert ends["exact"] == "not run: no time was left"
    ends = hour.take(options, ["exact", "cost"], tmp_path / "page.md", 5, lambda text: None)
    assert ends["exact"].startswith("stopped at its limit of 0 s")
    assert "found before" in (tmp_path / "page.md").read_text()


def test_what_went_wrong_while_others_went_on_stands_below_them_with_its_traceback(tmp_path):
    found = sheet.Sheet(tmp_path / "part.json")
    with pytest.raises(ValueError, match="first line") as caught:
        raise ValueError("first line\nsecond line")
    assert found.fault("a variant", caught.value) == "ValueError: first line"
    found.fault("a peer", ModuleNotFoundError("No module named 'absent'"))
    found.row("a | b", 1)
    lines = sheet.read(found.path)["lines"]
    assert lines[0] == "| a / b | 1 |"
    assert "a variant:" in lines
    assert any("test_first_hour.py" in line for line in lines)
    assert "second line" in lines
    assert not any("absent" in line for line in lines)


def test_a_variant_that_fails_keeps_what_was_timed_and_stops_no_other(tmp_path):
    case = table.cases(sheet.Options("cpu", True, str(tmp_path)))["eval"]
    inputs = case.inputs(case.shape)
    calls = []

    def fails_later():
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("out of something")

    steps = {"well": lambda: None, "late": fails_later, "timed before": fails_later}
    found = {"well": {}, "late": {}, "timed before": {"seconds": [1.0]}}
    table._in_turn(steps, found, inputs, sheet.Sheet(tmp_path / "part.json"), "cpu")
    assert len(found["well"]["seconds"]) == table.ROUNDS
    assert found["late"] == {"missing": "RuntimeError: out of something"}
    assert found["timed before"] == {"seconds": [1.0]}


def test_an_unknown_part_and_a_missing_device_are_named(tmp_path):
    wrong = CliRunner().invoke(
        command.app, ["gpu", "--device", "cpu", "--part", "exakt", "--out", str(tmp_path / "p")]
    )
    assert wrong.exit_code == 2
    assert "no part exakt" in wrong.output
    assert "Did you mean exact?" in wrong.output
    for device in ("gpu", "cuda:77", "cuda:x"):
        refused = CliRunner().invoke(command.app, ["gpu", "--device", device, "--out", str(tmp_path / "p")])
        assert refused.exit_code == 2
        assert f"--device {device}: allowed here: cpu" in refused.output
    assert not (tmp_path / "p").exists()
    if not torch.cuda.is_available():
        none = CliRunner().invoke(command.app, ["gpu", "--out", str(tmp_path / "p")])
        assert "torch sees no CUDA device" in none.output


@pytest.mark.parametrize("transform", [Transform(), Transform(scale=0.5, softcap=3.0)])
def test_the_truth_is_that_of_autograd_and_a_wrong_gradient_is_far_from_it(transform):
    shape = Shape(tokens=6, hidden=5, vocab=11, dtype="float64", trained=True)
    problem = exact.Problem(HiddenInputs(shape), transform)
    truth = exact.truth_of(problem)
    assert max(problem.errors(exact._plain, truth).values()) < 1e-13
    wrong = problem.errors(lambda problem: exact._plain(problem) * 1.01, truth)
    assert min(wrong.values()) > 0.009


def test_what_waits_is_counted_with_its_place():
    numbers = torch.arange(4)
    with Waits() as waits:
        numbers[numbers > 1].sum().item()
        numbers.nonzero()
        numbers[numbers]
    assert {place.split(" at ")[0]: count for place, count in waits.places.items()} == {
        "index": 1,
        "_local_scalar_dense": 1,
        "nonzero": 1,
    }
    assert waits.operations > 5


@pytest.mark.parametrize("minutes", ["nan", "0", "-1"])
def test_no_time_at_all_is_refused(minutes, tmp_path):
    page = tmp_path / "page.md"
    words = ["gpu", "--device", "cpu", "--small", "--part", "cost", "--out", str(page), f"--minutes={minutes}"]
    assert "more than 0 is needed" in CliRunner().invoke(command.app, words).output
    assert not page.exists()


def test_a_page_that_cannot_be_written_is_refused_before_a_part_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(hour, "take", lambda *arguments: pytest.fail("a part was started"))
    (tmp_path / "file").touch()
    for out, problem in ((tmp_path, "is a folder"), (tmp_path / "file" / "page.md", "cannot be written")):
        words = ["gpu", "--device", "cpu", "--small", "--part", "cost", "--out", str(out)]
        refused = CliRunner().invoke(command.app, words, env={"COLUMNS": "1000", "TERMINAL_WIDTH": "1000"})
        assert refused.exit_code == 2
        assert problem in refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="looks for processes in /proc"
)
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.full) for one in (signal.SIGHUP, signal.SIGINT))]
)
def test_a_signal_ends_the_part_too(number, tmp_path):
    words = ["gpu", "--device", "cpu", "--small", "--part", "exact", "--out", str(tmp_path / "page.md")]
    started = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        # What started the tests may ignore it: `nohup` does, and a shell for what runs in its background.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    parts, deadline = [], time.monotonic() + 60
    while not parts and time.monotonic() < deadline:
        time.sleep(0.1)
        parts = children_of(started.pid)
    try:
        time.sleep(0.3)
        started.send_signal(number)
        assert started.wait(30)
        (part,) = parts
        assert not Path(f"/proc/{part}").exists()
    finally:
        for pid in (started.pid, *parts):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.wait()
