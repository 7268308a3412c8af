"""`dft probe` with LLaMA-Factory: the very targets of its training."""

from __future__ import annotations

import json

import pytest
import yaml
from transformers import AutoModelForCausalLM

pytest.importorskip("llamafactory")

from support import factory, probed
from typer.testing import CliRunner

from dft_plugin.cli.app import app
from dft_plugin.config.hosts import Launch
from dft_plugin.config.plugins import build_catalogue

pytestmark = pytest.mark.host


@pytest.mark.parametrize("changes", [{}, {"packing": True}])
def test_numbers_are_those_of_the_models_own_logits(home, tmp_path, changes):
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump({**factory.arguments(home, tmp_path / "out", **changes), "loss": "dft"}))
    words = ["probe", str(path), "--json", "--tokens", "100000"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    found = json.loads(done.stdout[done.stdout.index("{\n") :])
    catalogue = build_catalogue()
    factory.write_config(tmp_path / "plain.yaml", **factory.arguments(home, tmp_path / "out"))
    launch = Launch(str(tmp_path / "plain.yaml"), [], catalogue.settings("nll"))
    trainer = catalogue.hosts["llamafactory"].item.show_trainer(launch, ())
    rows = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
    if changes:
        # Packed rows see each other here, as they do in its training.
        assert found["found"]["tokens"] == sum(label != -100 for _, labels in rows for label in labels[1:])
    else:
        probed.assert_right(found, AutoModelForCausalLM.from_pretrained(home / "llama"), rows)
