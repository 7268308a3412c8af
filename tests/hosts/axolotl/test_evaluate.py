"""`dft evaluate` and `dft report --config` with Axolotl: the numbers of `axolotl evaluate`, and those of its runs."""

from __future__ import annotations

import pytest

pytest.importorskip("axolotl")

from support import axolotl_runs, evaluated, sampled
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.host

HELD_OUT = {"val_set_size": 0.25, "eval_batch_size": 4, "loss": {"name": "dft", "alpha": 0.5}}
SAVES = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}


def test_numbers_are_those_of_axolotl_evaluate_and_of_float64(home):
    path = axolotl_runs.write_config(home, **HELD_OUT)
    found = evaluated.evaluate(path)
    assert not (home / "out").exists()
    evaluated.assert_logged(found["sets"]["eval"], axolotl_runs.evaluate(path))
    _, trainer = axolotl_runs.prepare(axolotl_runs.write_config(home, "plain.yml", val_set_size=0.25))
    rows = [(row["input_ids"], row["labels"]) for row in trainer.eval_dataset]
    model = AutoModelForCausalLM.from_pretrained(home / "models" / "llama")
    evaluated.assert_right(found["sets"]["eval"], model, rows, 0.5)
    assert found["sets"]["eval"]["ppl"] == found["sets"]["eval"]["dft/perplexity"]


def test_of_an_adapter_it_says_what_its_run_has_logged_and_a_report_shows_its_rows(home):
    path = axolotl_runs.write_config(home, **HELD_OUT, **SAVES, **axolotl_runs.LORA)
    run = axolotl_runs.train(path)
    out = home / "out" / "config.yml"
    before = evaluated.contents(out)
    found = evaluated.evaluate(path, "--checkpoint", out / "checkpoint-2")
    (logged,) = [entry for entry in run.evaluations if entry["step"] == 2]
    evaluated.assert_logged(found["sets"]["eval"], logged)
    sampled.assert_right(path, out, out / "checkpoint-2", run.trainer, 0.5)
    assert evaluated.contents(out) == before


def test_without_evaluation_data_it_says_which_lines_are_missing(home):
    path = axolotl_runs.write_config(home)
    said = evaluated.refused(path)
    assert said == "the config names no data to evaluate on. Add `val_set_size: 0.05`, or `test_datasets:`."
