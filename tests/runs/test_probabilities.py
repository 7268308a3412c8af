"""Histograms of probabilities: read with half lines and resumptions in them, the first and the last of each kind."""

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dft_plugin.cli.app import app
from dft_plugin.core.bands import EDGES
from dft_plugin.runs.logs import Run, load
from dft_plugin.runs.page import render
from dft_plugin.runs.probabilities import COARSE, TRAINING, TWENTIETHS, Histogram, change_of, changes, kinds


def histogram(of, step, p):
    counts = tuple(sum(low <= one < high for one in p) for low, high in pairwise(EDGES))
    return Histogram(of, step, EDGES, counts)


def line(of, step, counts):
    return json.dumps({"of": of, "step": step, "edges": [0.0, 0.5, 1.0], "counts": counts}) + "\n"


def probabilities(seed, power):
    pick = random.Random(seed)
    return [pick.random() ** power for _ in range(400)]


def run(name, *histograms):
    return Run(name, Path(name), ({"step": 1.0, "loss": 1.0},), "dft", None, histograms)


@pytest.mark.parametrize("ends", [COARSE, TWENTIETHS])
def test_shares_of_coarser_bands_are_those_of_the_tokens(ends):
    p = probabilities(0, 3)
    found = histogram("eval", 1, p).shares(ends)
    by_hand = [sum(low <= one < high for one in p) / 400 for low, high in pairwise(ends)]
    assert found == pytest.approx(by_hand, abs=1e-15)
    assert sum(found) == pytest.approx(1)


def test_what_is_no_line_is_left_out_and_a_step_counts_once(tmp_path):
    broken = ['{"of": "tra', "[]\n", '{"of": "eval", "step": 1}\n', line("eval", 3, [1]), line("eval", 4, [0, 0])]
    text = line("eval", 2, [1, 1]) + line("training", 1, [3, 0]) + "\n".join(broken) + "\n" + line("eval", 2, [0, 2])
    (tmp_path / "dft_probabilities.jsonl").write_text(text)
    (tmp_path / "trainer_log.jsonl").write_text('{"current_steps": 2, "loss": 1.0}\n')
    found = load(tmp_path).histograms
    assert [(one.of, one.step, one.counts) for one in found] == [("training", 1, (3, 0)), ("eval", 2, (0, 2))]
    assert load(tmp_path / "trainer_log.jsonl").histograms == found


def test_a_run_without_the_file_has_none(tmp_path):
    (tmp_path / "trainer_log.jsonl").write_text('{"current_steps": 2, "loss": 1.0}\n')
    assert load(tmp_path).histograms == ()


def test_before_is_the_first_and_after_the_last_and_one_alone_is_neither():
    every = [histogram(of, step, probabilities(step, 1)) for of in (TRAINING, "eval") for step in (0, 5, 9)]
    every.append(histogram("test", 9, [0.5]))
    assert {change.of: (change.before.step, change.after.step) for change in changes(every)} == {
        TRAINING: (0, 9),
        "eval": (0, 9),
    }
    assert change_of(every, "test") is None
    assert kinds([every]) == ["eval", TRAINING], "the same targets come first"


def test_the_page_draws_them_and_the_terminal_shows_them(tmp_path):
    pytest.importorskip("plotly")
    before, after = probabilities(1, 4), probabilities(2, 1)
    text = render([run("<dft>", histogram("eval", 0, before), histogram("eval", 7, after)), run("old")])
    body = text.split("<body>")[1]
    assert "first count and last (eval)" in body
    assert "step 0" in body
    assert "step 7" in body
    assert f"{sum(0.45 <= one < 0.5 for one in after) / 400}" in body
    assert "first count and last" not in render([run("old")]).split("<body>")[1]
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "trainer_log.jsonl").write_text('{"current_steps": 7, "loss": 1.0, "dft/nll": 1.0}\n')
    given = {"edges": COARSE, "of": "eval"}
    rows = [{**given, "step": 0, "counts": [5, 3, 1, 1, 0]}, {**given, "step": 7, "counts": [1, 1, 2, 2, 4]}]
    (folder / "dft_probabilities.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = CliRunner().invoke(app, ["compare", str(folder)], env={"COLUMNS": "120"}).stdout
    assert "step 0 -> 7" in shown
    assert "50.0% -> 10.0%" in shown
    assert "0.0% -> 40.0%" in shown
