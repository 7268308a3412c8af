"""The logs of runs, as each host writes them, come out as the same numbers."""

import json

import pytest
from typer.testing import CliRunner

from dft_plugin.cli.app import app
from dft_plugin.cli.comparing import load_all
from dft_plugin.errors import SettingsError
from dft_plugin.runs.logs import EmptyLogError, load, named_apart

HISTORY = [
    {"step": 1, "loss": 0.5, "dft/nll": 2.0, "epoch": 0.1},
    {"step": 2, "loss": 0.4, "dft/nll": 1.5, "epoch": 0.2},
    {"step": 2, "eval_loss": 0.45, "eval_dft/nll": 1.75, "epoch": 0.2},
]


def state(folder, history=HISTORY):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trainer_state.json"
    path.write_text(json.dumps({"log_history": history, "global_step": 2}))
    return path


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_trainers_state(tmp_path):
    state(tmp_path / "run")
    run = load(tmp_path / "run")
    assert run.name == "run"
    assert run.series("dft/nll") == [(1, 2.0), (2, 1.5)]
    assert run.series("eval_dft/nll") == [(2, 1.75)]
    assert run.series("nowhere") == []


def test_the_newest_checkpoint_by_number_not_by_name(tmp_path):
    state(tmp_path / "checkpoint-9", HISTORY[:1])
    state(tmp_path / "checkpoint-10")
    assert load(tmp_path).series("dft/nll") == [(1, 2.0), (2, 1.5)]


def unlogged(folder):
    """A run of nine steps that was to log each tenth."""
    path = state(folder / "checkpoint-9", [])
    path.write_text(json.dumps({"log_history": [], "global_step": 9, "logging_steps": 10}))
    return folder


def test_a_log_without_a_line_is_empty_and_not_missing(tmp_path):
    with pytest.raises(EmptyLogError) as caught:
        load(unlogged(tmp_path / "dft"))
    assert str(caught.value) == (
        f"{tmp_path / 'dft'} has logged nothing: checkpoint-9/trainer_state.json ends at step 9, and its log is empty "
        "(`logging_steps` was 10). Train with `logging_steps: 1`."
    )


def test_a_run_that_has_logged_nothing_is_named_and_the_others_are_compared(tmp_path):
    state(tmp_path / "sft"), unlogged(tmp_path / "dft")
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "dft"), str(tmp_path / "sft")])
    assert done.exit_code == 0
    assert f"left out: {tmp_path / 'dft'} has logged nothing" in done.stderr
    assert "nats per token, training" in done.stdout
    assert [run.name for run in load_all([tmp_path / "dft", tmp_path / "sft"])] == ["sft"]


def test_where_no_run_has_logged_anything_it_is_an_error(tmp_path):
    with pytest.raises(EmptyLogError, match="has logged nothing"):
        load_all([unlogged(tmp_path / "dft")])


def test_llamafactorys_log(tmp_path):
    lines(tmp_path / "trainer_log.jsonl", [{"current_steps": 3, "loss": 0.5, "lr": 1e-4, "remaining_time": "0:01"}])
    assert load(tmp_path).series("loss") == [(3, 0.5)]
    assert load(tmp_path).series("learning_rate") == [(3, 1e-4)]


def test_swifts_log_in_the_folder_of_its_last_start(tmp_path):
    row = {"loss": 0.5, "dft/nll": 2.0, "global_step/max_steps": "4/10", "percentage": "40%"}
    lines(tmp_path / "v0-20260101" / "logging.jsonl", [row])
    assert load(tmp_path).series("dft/nll") == [(4, 2.0)]


def test_verls_log_and_a_file_of_the_same_name_that_is_none(tmp_path):
    rows = [{"step": 1, "data": {"train/loss": 0.5, "dft/nll": 2.0}}, {"step": 1, "data": {"val/dft/nll": 3.0}}]
    lines(tmp_path / "verl" / "log.jsonl", rows)
    run = load(tmp_path / "verl")
    assert [run.series(key) for key in ("loss", "dft/nll", "eval_dft/nll")] == [[(1, 0.5)], [(1, 2.0)], [(1, 3.0)]]
    for step in (9, 10):
        (tmp_path / "verl" / f"global_step_{step}").mkdir()
        recorded = {"in_words": f"of step {step}", "loss": {"name": "dft"}}
        (tmp_path / "verl" / f"global_step_{step}" / "dft_loss.json").write_text(json.dumps(recorded))
    assert load(tmp_path / "verl").loss == "of step 10"
    lines(tmp_path / "other" / "logging.jsonl", [{**HISTORY[0], "step": 1}])
    (tmp_path / "other" / "log.jsonl").write_text("something else\n")
    assert load(tmp_path / "other").source.name == "logging.jsonl"


def test_a_log_that_goes_on_after_the_last_checkpoint_is_preferred(tmp_path):
    state(tmp_path / "checkpoint-2")
    lines(tmp_path / "logging.jsonl", [{**HISTORY[0], "step": step} for step in (1, 2, 3)])
    assert load(tmp_path).source.name == "logging.jsonl"


def test_of_two_that_end_together_the_richer_one(tmp_path):
    state(tmp_path)
    lines(tmp_path / "trainer_log.jsonl", [{"current_steps": 2, "loss": 0.4}])
    assert load(tmp_path).source.name == "trainer_state.json"


def test_a_step_that_was_logged_twice_counts_once(tmp_path):
    state(tmp_path, [*HISTORY, {"step": 2, "dft/nll": 1.25}])
    assert load(tmp_path).series("dft/nll") == [(1, 2.0), (2, 1.25)]


def test_what_is_no_number_is_left_out(tmp_path):
    state(tmp_path, [{"step": 1, "loss": True, "text": "x", "dft/nll": 10**400, "dft/top1": 0.5}])
    assert load(tmp_path).keys == {"step", "dft/top1"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (None, "", "is not there"),
        ("readme.txt", "x", "holds no log"),
        ("trainer_state.json", "{", "not JSON"),
        ("trainer_state.json", "[]", "no `log_history`"),
        ("trainer_log.jsonl", '{"a": 1}\n{"b"', "not JSON"),
    ],
)
def test_what_is_no_log_is_named(tmp_path, name, text, said):
    folder = tmp_path / "run"
    if name:
        folder.mkdir()
        (folder / name).write_text(text)
    with pytest.raises(SettingsError, match=said):
        load(folder)


def test_a_folder_of_runs_names_them(tmp_path):
    for name in ("dft", "s f t", "notes"):
        (tmp_path / name).mkdir()
    for name in ("dft", "s f t"):
        state(tmp_path / name)
    with pytest.raises(SettingsError) as caught:
        load(tmp_path)
    assert caught.value.problems[0] == (
        f"{tmp_path} is no run, and holds 2: give them, {tmp_path / 'dft'} '{tmp_path / 's f t'}'."
    )


def test_what_evaluate_wrote_is_read_as_a_run_of_one_record(tmp_path):
    (tmp_path / "dft_loss.json").write_text(json.dumps({"in_words": "of a neighbour", "loss": {"name": "nll"}}))
    written = {
        "sets": {"eval": {"dft/nll": 0.5, "loss": 0.25}, "eval_math": {"dft/nll": 0.75}},
        "step": 40,
        "trained_with": "dft(alpha=0.5)",
    }
    (tmp_path / "dft.json").write_text(json.dumps(written))
    run = load(tmp_path / "dft.json")
    assert run.series("eval_dft/nll") == [(40, 0.5)]
    assert run.series("eval_math_dft/nll") == [(40, 0.75)]
    assert (run.name, run.loss) == ("dft", "dft(alpha=0.5)")


def test_what_it_was_trained_with_is_read_beside_it(tmp_path):
    state(tmp_path / "checkpoint-2")
    recorded = {"in_words": "dft(alpha=0.5)", "loss": {"name": "dft", "alpha": 0.5}}
    (tmp_path / "checkpoint-2" / "dft_loss.json").write_text(json.dumps(recorded))
    run = load(tmp_path)
    assert (run.loss, run.written) == ("dft(alpha=0.5)", {"name": "dft", "alpha": 0.5})
    (tmp_path / "checkpoint-2" / "dft_loss.json").write_text("{")
    assert load(tmp_path).loss is None


def test_the_newest_record_is_read_by_number_not_by_name(tmp_path):
    lines(tmp_path / "trainer_log.jsonl", [{"current_steps": 10, "loss": 0.5}])
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "dft_loss.json").write_text(json.dumps({"in_words": str(step), "loss": {"name": "dft"}}))
    assert load(tmp_path).loss == "10"


def test_runs_of_one_name_are_told_apart(tmp_path):
    for folder in ("a/out", "b/out"):
        state(tmp_path / folder)
    names = [run.name for run in named_apart([load(tmp_path / "a/out"), load(tmp_path / "b/out")])]
    assert names[0].endswith("a/out")
    assert names[1].endswith("b/out")
