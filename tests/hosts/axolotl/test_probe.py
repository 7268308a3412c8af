"""`dft probe` with Axolotl: the very targets of its training."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM

pytest.importorskip("axolotl")

from support import axolotl_runs, probed
from typer.testing import CliRunner

from dft_plugin.cli.app import app

pytestmark = pytest.mark.host


@pytest.mark.parametrize("changes", [{}, axolotl_runs.LORA])
def test_numbers_are_those_of_the_models_own_logits(home, changes):
    path = axolotl_runs.write_config(home, **changes)
    done = CliRunner().invoke(app, ["probe", str(path), "--json", "--tokens", "100000"], catch_exceptions=False)
    found = json.loads(done.stdout[done.stdout.index("{\n") :])
    _, trainer = axolotl_runs.prepare(axolotl_runs.write_config(home, "plain.yml"))
    rows = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
    model = AutoModelForCausalLM.from_pretrained(home / "models" / "llama")
    probed.assert_right(found, model, rows)
    assert found["host"] == "axolotl"
