"""`dft probe` with TRL: the very targets of the training, and a model that is as it was."""

from __future__ import annotations

import json

import pytest
from support import probed, tiny, trl_runs
from typer.testing import CliRunner

from dft_plugin.cli.app import app

pytestmark = pytest.mark.host


@pytest.fixture
def home(tmp_path, monkeypatch):
    trl_runs.make_folder(tmp_path)
    (tmp_path / "sft.yaml").write_text(trl_runs.YAML + "loss: {name: dft, floor: 0.1}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dft"])
    return tmp_path


def run(*words):
    done = CliRunner().invoke(app, ["probe", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def of_json(text):
    return json.loads(text[text.index("{\n") :])


def test_numbers_are_those_of_the_models_own_logits(home):
    found = of_json(run("sft.yaml", "--json"))
    probed.assert_right(found, tiny.llama(), [(row["input_ids"], row["labels"]) for row in trl_runs.rows(home)])
    assert found["found"]["rows"] == 24
    assert found["found"]["repeated_share"] == 0
    assert found["kinds"]["eos"]["tokens"] == 24
    assert "{name: dft, floor: 0.1}" in found["objectives"]
    assert found["advice"][0]["what"] == "nll"
    assert sum(band["tokens"] for band in found["bands"]) == found["found"]["tokens"]
    assert not (home / "out").exists()


def test_packing_and_adapters_change_nothing(home):
    plain = of_json(run("sft.yaml", "--json"))
    (home / "sft.yaml").write_text((home / "sft.yaml").read_text() + trl_runs.LORA + "packing: true\n")
    assert of_json(run("sft.yaml", "--json"))["found"] == pytest.approx(plain["found"], rel=1e-5)


def test_it_stops_after_so_many_targets(home):
    few = of_json(run("sft.yaml", "per_device_train_batch_size=2", "--tokens", "5", "--json"))
    assert 5 <= few["found"]["tokens"] < 60
    assert few["found"]["rows"] == 2


def test_what_a_person_reads_and_a_loss_that_cannot_be_compared(home):
    text = run("sft.yaml", "--loss", "prift", "--loss", "focal")
    assert "not compared: prift" in text
    assert "    loss: nll\n" in text
    assert "focal" in text
    assert "ends of answers" in text


def test_a_model_and_data_without_a_config(home):
    found = of_json(run("--model", "model", "--data", "data/train.jsonl", "--json"))
    probed.assert_right(found, tiny.llama(), [(row["input_ids"], row["labels"]) for row in trl_runs.rows(home)])


def test_rows_that_are_there_twice_are_counted(home):
    path = home / "data" / "train.jsonl"
    path.write_text("\n".join([path.read_text()] * 2))
    found = of_json(run("sft.yaml", "--json"))
    assert found["found"]["repeated_share"] == pytest.approx(0.5)
    assert any("there more than once" in one["why"] for one in found["advice"])


@pytest.mark.parametrize("words", [[], ["--model", "model"], ["sft.yaml", "--model", "model", "--data", "data"]])
def test_neither_a_config_nor_a_model_with_data_is_refused(home, words):
    done = CliRunner().invoke(app, ["probe", *words])
    assert "--model and --data" in str(done.exception)
