"""Installed, with autoload, and not asked for: a plain training is bit for bit what it is where dft-plugin is not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from reliability.downstream import environments, folders, names, trainings

pytestmark = pytest.mark.host


def test_the_plain_trainer_trains_the_same_without_us_and_beside_us(tmp_path):
    made = {kind: environments.make(Path(sys.prefix), kind, tmp_path / kind) for kind in ("stock", "autoload")}
    assert environments.traces(made["stock"]) == {"module": False, "entry points": False, "autoload": False}
    assert environments.traces(made["autoload"]) == {"module": True, "entry points": True, "autoload": True}
    (tmp_path / "home").mkdir()
    start = folders.transformers(tmp_path / "home", "lora")
    rows = trainings.rows("transformers", "lora", start, made, tmp_path, again=False)
    found = {row["run"]: row for row in rows}
    assert found.keys() == made.keys()
    stock, ours = found["stock"], found["autoload"]
    assert stock["code"] == 0, stock["failed"]
    assert len([entry for entry in stock["log"] if "loss" in entry]) == 4
    assert stock["weights"].keys() == {f"out{os.sep}adapter_model.safetensors"}
    for key in ("code", "log", "weights", "files"):
        assert ours[key] == stock[key], key
    assert ours["said"] == []


def test_a_process_of_an_environment_gets_no_path_from_outside(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "here")
    variables = environments.Environment("stock", tmp_path).variables(names.OFFLINE)
    assert "PYTHONPATH" not in variables
    assert variables["PATH"].split(os.pathsep)[0] == str(tmp_path / "bin")
