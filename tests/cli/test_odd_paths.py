"""Paths that nothing can be read from: each command says so in a line, and ends with exit code 2."""

from __future__ import annotations

import errno
import json
import os
import sys

import pytest

from dft_plugin.cli import app

DEEP = "[" * 100_000
COMMANDS = {
    "check": ["check", "PATH"],
    "train": ["train", "PATH"],
    "probe": ["probe", "PATH"],
    "probe data": ["probe", "--model", ".", "--data", "PATH"],
    "evaluate": ["evaluate", "PATH"],
    "reference": ["reference", "PATH"],
    "sample": ["sample", "PATH"],
    "compare": ["compare", "PATH"],
}
LOG = {"log_history": [{"step": 1, "loss": 1.0}], "global_step": 1}


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """Run a command in a folder, and return what it says."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["dft", *words])
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert ended.value.code == 2
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize("odd", ["long", "fifo", "device"])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_no_file_is_at_is_said_by_name(command, odd, said, tmp_path):
    os.mkfifo(tmp_path / "fifo.jsonl")
    path = {"long": "x" * 5000 + ".jsonl", "fifo": "fifo.jsonl", "device": "/dev/null"}[odd]
    text = said(*(path if word == "PATH" else word for word in COMMANDS[command]))
    assert path[:40] in text.replace("\n", "")


@pytest.mark.parametrize("name", ["trainer_state.json", "logging.jsonl"])
def test_a_log_that_nests_too_deep_is_said_to_be_damaged(name, said, tmp_path):
    (tmp_path / name).write_text(DEEP)
    assert "nested too deep" in said("compare", ".")


@pytest.mark.parametrize("name", ["dft_loss.json", "dft_probabilities.jsonl"])
def test_what_nests_too_deep_beside_a_log_is_left_out(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trainer_state.json").write_text(json.dumps(LOG))
    (tmp_path / name).write_text(DEEP)
    monkeypatch.setattr(sys, "argv", ["dft", "compare", "."])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert not ended.value.code
    assert "logged no dft/*" in capsys.readouterr().out


def test_rows_that_nest_too_deep_are_said_with_their_line(said, tmp_path):
    (tmp_path / "rows.jsonl").write_text(DEEP)
    assert "line 1 is not JSON (nested too deep" in said("probe", "--model", ".", "--data", "rows.jsonl")


@pytest.fixture
def failing(monkeypatch):
    """Have the command fail by an error of the system."""

    def fail(error):
        def command(**_):
            raise error

        monkeypatch.setattr(app, "app", command)
        monkeypatch.setattr(sys, "argv", ["dft", "train", "closed/train.yaml", "output_dir=out", "name="])

    return fail


@pytest.mark.parametrize(
    "error",
    [PermissionError(errno.EACCES, "Permission denied", "elsewhere"), OSError(errno.ENOSPC, "No space", "out/a.bin")],
    ids=["another path", "a full disk"],
)
def test_an_error_of_the_system_that_is_not_about_looking_stays_what_it_is(error, failing):
    failing(error)
    with pytest.raises(type(error)):
        app.main()


def test_a_folder_that_nobody_may_look_into_is_said(failing, capsys):
    failing(PermissionError(errno.EACCES, "Permission denied", "closed/train.yaml"))
    with pytest.raises(SystemExit):
        app.main()
    assert capsys.readouterr().err.startswith("dft: closed/train.yaml cannot be looked at (Permission denied).")
