"""README's config trains, with no more than model, data and folder of its own, and what a CPU needs."""

from __future__ import annotations

import json

import pytest
import yaml
from safetensors.torch import load_file

pytest.importorskip("llamafactory")

from support import factory, readme, tiny, training

pytestmark = pytest.mark.host


def make_folder(folder, dataset):
    """A model with the words of Qwen's template, and a data set of that name where LLaMA-Factory looks for it."""
    tokenizer = training.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tiny.llama(vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    (folder / "data" / "made.json").write_text(json.dumps(factory.plain_rows()))
    (folder / "data" / "dataset_info.json").write_text(json.dumps({dataset: {"file_name": "made.json"}}))


def test_the_config_trains_dft_by_the_command_that_stands_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(readme.blocks()["LLaMA-Factory"])
    make_folder(tmp_path, config["dataset"])
    config |= {"model_name_or_path": "model", "output_dir": "out"}
    config |= {"max_steps": 2, "logging_steps": 1, "report_to": "none", "use_cpu": True}
    factory.write_config(tmp_path / "sft.yaml", **config)

    here = factory.train({**config, "output_dir": "here"}, config["loss"])
    assert here.losses[0] == pytest.approx(here.expected, rel=1e-6, abs=factory.ROUNDED)
    done = factory.command("train", "sft.yaml", cwd=tmp_path, script="dft")
    assert done.returncode == 0, done.stderr
    assert [entry["loss"] for entry in factory.history(tmp_path / "out")] == pytest.approx(here.losses, rel=1e-6)
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(tensor.any() for tensor in adapter.values()), "nothing was trained"
