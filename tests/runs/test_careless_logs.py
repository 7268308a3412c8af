"""Logs as they lie about: half written, of several trainings, of a run that diverged, beside those of other runs."""

import json
import math
import os

import pytest

from dft_plugin.cli.comparing import show, write
from dft_plugin.errors import SettingsError
from dft_plugin.runs.logs import Run, load
from dft_plugin.runs.page import render
from dft_plugin.runs.table import compare

RECORD = {"format": 1, "in_words": "dft(alpha=1.0)", "loss": {"name": "dft"}}
COUNTS = {"of": "training", "edges": [0, 0.01, 0.1, 0.5, 0.9, 1], "counts": [1, 1, 1, 1, 1]}


def state(folder, losses, *, changed=None, key="dft/nll"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trainer_state.json"
    rows = [{"step": at, "loss": value, key: value} for at, value in enumerate(losses, 1)]
    path.write_text(json.dumps({"log_history": rows}))
    if changed is not None:
        os.utime(path, (changed, changed))
    return path


def test_a_run_that_came_to_nan_ends_with_nan_and_is_not_the_best(tmp_path):
    state(tmp_path / "nan", [1.0, math.nan])
    state(tmp_path / "ok", [2.0, 1.5])
    line = next(one for one in compare([load(tmp_path / "nan"), load(tmp_path / "ok")]) if one.key == "dft/nll")
    assert math.isnan(line.values[0])
    assert line.best == {1}


@pytest.mark.parametrize("name", ["trainer_log.jsonl", "logging.jsonl"])
def test_a_line_that_is_being_written_waits(tmp_path, name):
    (tmp_path / name).write_text('{"current_steps": 1, "loss": 2.0}\nnull\n{"current_steps": 2, "lo')
    assert load(tmp_path).series("loss") == [(1, 2.0)]


@pytest.mark.parametrize("damage", ['{"log_history": [', '{"log_history": null}', "[]", "\xff"])
def test_a_damaged_log_does_not_hide_another(tmp_path, damage):
    state(tmp_path / "checkpoint-2", [2.0, 1.5])
    (tmp_path / "trainer_state.json").write_text(damage, encoding="latin-1")
    assert load(tmp_path).series("dft/nll") == [(1, 2.0), (2, 1.5)]


@pytest.mark.parametrize(
    "row", ["3", '{"step": null, "loss": 1}', '{"step": NaN, "loss": 1}', '{"step": "x", "loss": 1}']
)
def test_rows_without_a_step_are_left_out(tmp_path, row):
    (tmp_path / "trainer_state.json").write_text(f'{{"log_history": [{row}, {{"step": 1, "loss": 2.0}}]}}')
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "logging.jsonl").write_text(f'{row}\n{{"step": 1, "loss": 2.0}}\n')
    assert load(tmp_path).series("loss") == load(tmp_path / "log").series("loss") == [(1, 2.0)]


def test_other_encodings_are_read_or_named(tmp_path):
    text = state(tmp_path, [2.0]).read_text()
    (tmp_path / "trainer_state.json").write_text(text, encoding="utf-8-sig")
    assert load(tmp_path).series("loss") == [(1, 2.0)]
    (tmp_path / "trainer_state.json").write_text(text, encoding="utf-16")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load(tmp_path)


@pytest.mark.parametrize("newest", ["short", "long"])
def test_of_two_trainings_in_a_folder_the_newest_is_shown_and_the_other_named(tmp_path, newest, capsys):
    short = state(tmp_path, [3.0, 2.5], changed=1000 if newest == "long" else 3000)
    long = state(tmp_path / "checkpoint-4", [9.0, 8.0, 7.0, 6.0], changed=2000)
    run = load(tmp_path)
    assert run.source == (short if newest == "short" else long)
    assert run.others == ((long,) if newest == "short" else (short,))
    show([run])
    assert "more than one training" in capsys.readouterr().out


def test_a_checkpoint_of_the_same_training_is_no_other(tmp_path):
    state(tmp_path / "checkpoint-1", [3.0], changed=3000)
    whole = state(tmp_path, [3.0001, 2.5], changed=1000)
    assert (load(tmp_path).source, load(tmp_path).others) == (whole, ())


@pytest.mark.parametrize(
    ("again", "expected"),
    [
        ([(1, 5.0), (2, 4.0)], [(1, 5.0), (2, 4.0)]),
        ([(3, 5.0), (5, 4.0)], [(2, 2.0), (3, 5.0), (5, 4.0)]),
    ],
)
def test_a_later_start_in_the_same_log_takes_the_place_of_what_it_does_again(tmp_path, again, expected):
    rows = [(2, 2.0), (4, 1.5), (6, 1.0), *again]
    text = "".join(json.dumps({"current_steps": step, "loss": loss}) + "\n" for step, loss in rows)
    (tmp_path / "trainer_log.jsonl").write_text(text)
    assert load(tmp_path).series("loss") == expected


def test_progress_without_a_loss_takes_the_place_of_nothing(tmp_path):
    rows = [{"current_steps": 4, "loss": 1.5}, {"current_steps": 4, "eval_loss": 1.0}, {"current_steps": 1}]
    (tmp_path / "trainer_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load(tmp_path).series("loss") == [(4, 1.5)]


def test_what_lies_in_the_folder_around_is_another_runs(tmp_path):
    (tmp_path / "dft_loss.json").write_text(json.dumps(RECORD))
    counted = "".join(json.dumps({**COUNTS, "step": step}) + "\n" for step in (1, 9))
    (tmp_path / "dft_probabilities.jsonl").write_text(counted)
    state(tmp_path / "inside", [2.0])
    run = load(tmp_path / "inside")
    assert (run.loss, run.histograms) == (None, ())


@pytest.mark.parametrize("part", ["checkpoint-1", "runs", "runs/today"])
def test_a_part_of_a_run_finds_what_the_run_recorded(tmp_path, part, monkeypatch):
    (tmp_path / "dft_loss.json").write_text(json.dumps(RECORD))
    state(tmp_path / part, [2.0])
    assert load(tmp_path / part).loss == "dft(alpha=1.0)"
    monkeypatch.chdir(tmp_path / part)
    assert load(type(tmp_path)("trainer_state.json")).loss == "dft(alpha=1.0)"


def test_a_record_that_an_earlier_training_left_is_not_that_of_a_run_without_us(tmp_path):
    (tmp_path / "dft_loss.json").write_text(json.dumps(RECORD))
    state(tmp_path, [2.0], key="grad_norm")
    assert load(tmp_path).loss is None


def test_each_of_several_evaluation_sets_has_its_lines_and_curves(tmp_path):
    pytest.importorskip("plotly")
    rows = [{"step": 1, "eval_math_dft/nll": 1.0, "eval_facts_dft/nll": 4.0, "dft/nll": 3.0}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    run = load(tmp_path)
    found = {line.title: line.values for line in compare([run])}
    assert found["cross-entropy (nll), nats per token, evaluation on math"] == (1.0,)
    assert found["cross-entropy (nll), nats per token, evaluation on facts"] == (4.0,)
    assert "evaluation on facts" in render([run])


@pytest.mark.parametrize("width", [40, 80, 300])
@pytest.mark.parametrize("count", [2, 6, 30])
def test_no_number_and_no_name_is_cut_off(tmp_path, capsys, monkeypatch, width, count):
    monkeypatch.setenv("COLUMNS", str(width))
    runs = [
        Run(f"out-{at:02}", tmp_path, ({"step": 1, "dft/nll": 0.101 + at / 1000, "eval_dft/nll": -1.235e-5},))
        for at in range(count)
    ]
    show(runs)
    said = capsys.readouterr().out
    assert "…" not in said
    assert all(f" {0.101 + at / 1000:.4g} " in said and f" out-{at:02} " in said for at in range(count))
    assert said.count("-1.235e-05") == count
    assert max(len(line) for line in said.splitlines() if line.startswith(("│", "┃"))) <= width


def test_no_two_runs_have_one_colour(tmp_path):
    pytest.importorskip("plotly")
    page = render([Run(str(at), tmp_path, ({"step": 1, "dft/nll": 1.0},)) for at in range(20)])
    table = page[page.index("<body>") : page.index("Where they ended")]
    colours = [part.split('"')[0] for part in table.split("background:")[1:]]
    assert len(set(colours)) == len(colours) == 20


def test_a_page_holds_names_that_are_no_text_and_is_written_into_no_folder(tmp_path):
    pytest.importorskip("plotly")
    run = Run("lat\udcfcn", tmp_path, ({"step": 1, "dft/nll": 1.0},))
    assert "lat?n" in write([run], tmp_path / "page.html").read_text(encoding="utf-8")
    with pytest.raises(SettingsError, match="is a folder"):
        write([run], tmp_path)


def test_a_name_is_no_markup_in_the_legend(tmp_path):
    pytest.importorskip("plotly")
    page = render([Run('<b>x"', tmp_path, ({"step": 1, "dft/nll": 1.0},))])
    # Plotly takes `<b>` for bold type, and knows no `&quot;`.
    assert r'"name":"&lt;b&gt;x\", training"' in page
