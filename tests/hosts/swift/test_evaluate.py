"""`dft evaluate`, `dft report --config` and `dft probe` with ms-swift: what its run has logged, and sees."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("swift")

from support import evaluated, probed, sampled, swift_runs
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from dft_plugin.cli.app import app

pytestmark = pytest.mark.host

LOSS = {"name": "dft", "alpha": 0.5}
SAVES = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}


def test_of_an_adapter_it_says_what_its_run_has_logged_and_report_and_probe_see_its_rows(home, tmp_path):
    out = tmp_path / "out"
    held_out = [str(home / "held-out.jsonl")]
    config = swift_runs.config(home, out, val_dataset=held_out, **SAVES, **swift_runs.LORA)
    path = swift_runs.write(tmp_path / "sft.yaml", **config, loss=LOSS)
    run = swift_runs.train(config, LOSS)
    (logged,) = run.evaluations
    before = evaluated.contents(out)
    found = evaluated.evaluate(path, "--checkpoint", out / "checkpoint-2")
    evaluated.assert_logged(found["sets"]["eval"], logged)
    assert found["notes"] == []
    assert found["sets"]["eval"]["token_acc"] == pytest.approx(logged["eval_token_acc"])
    sampled.assert_right(path, out, out / "checkpoint-2", run.trainer, 0.5)
    assert evaluated.contents(out) == before
    words = ["probe", str(path), "--json", "--tokens", "100000"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    rows = [(row["input_ids"], row["labels"]) for row in run.trainer.train_dataset]
    model = AutoModelForCausalLM.from_pretrained(home / "qwen2")
    probed.assert_right(json.loads(done.stdout[done.stdout.index("{\n") :]), model, rows)


def test_without_evaluation_data_it_says_which_lines_are_missing(home, tmp_path):
    path = swift_runs.write(tmp_path / "sft.yaml", **swift_runs.config(home, tmp_path / "out"), loss=LOSS)
    assert "Add `val_dataset: PATH`, or `split_dataset_ratio: 0.05`." in evaluated.refused(path)
