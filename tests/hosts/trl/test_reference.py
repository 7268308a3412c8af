"""`dft train` in TRL with losses that compare with a reference: by YAML, against float64 from the data set on."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from support import referred, tiny, training
from support.referred import LOSSES

pytestmark = pytest.mark.host

YAML = """\
model_name_or_path: model
dataset_name: data
output_dir: out
max_length: 64
per_device_train_batch_size: 24
train_sampling_strategy: sequential
max_steps: 2
save_steps: 1
learning_rate: 4.0
lr_scheduler_type: constant
max_grad_norm: 0.0
optim: sgd
logging_steps: 1
report_to: none
use_cpu: true
bf16: false
dtype: float32
gradient_checkpointing: false
"""
LORA = "use_peft: true\nlora_r: 4\nlora_dropout: 0.0\nlora_target_modules: [q_proj, v_proj, up_proj]\n"


@pytest.fixture
def folder(tmp_path):
    tiny.llama().save_pretrained(tmp_path / "model")
    training.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    lines = [
        {
            "prompt": " ".join(f"w{i}" for i, y in zip(row["input_ids"], row["labels"], strict=True) if y == -100),
            # TRL joins the two texts before it tokenises them.
            "completion": "".join(f" w{y}" for y in row["labels"] if y != -100),
        }
        for row in training.rows()
    ]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def train(folder, loss, more=""):
    (folder / "sft.yaml").write_text(YAML + more + f"loss: {loss}\n")
    done = subprocess.run(
        [sys.executable, "-m", "dft_plugin.cli", "train", "sft.yaml"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    state = folder / "out" / "checkpoint-2" / "trainer_state.json"
    return json.loads(state.read_text())["log_history"], done.stderr


def batch(folder):
    """All rows, as TRL tokenises them: an end-of-sequence token after each completion."""
    tokenizer, rows = training.tokenizer(), []
    for line in (folder / "data" / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt, answer = (tokenizer(row[key])["input_ids"] for key in ("prompt", "completion"))
        rows.append({"input_ids": [*prompt, *answer, 2], "labels": [*[-100] * len(prompt), *answer, 2]})
    return training.collate(rows)


def logits(model, inputs):
    with torch.no_grad():
        return model(**{key: value for key, value in inputs.items() if key != "labels"}).logits


@pytest.mark.parametrize("loss", ["prift", "asft"])
def test_the_second_loss_equals_float64_against_the_base_model(loss, folder):
    (first, second), err = train(folder, json.dumps(LOSSES[loss][0]), LORA)
    assert err.count("; reference: the base model, its adapters off (one more forward pass") == 1
    model = PeftModel.from_pretrained(tiny.llama(), folder / "out" / "checkpoint-1", is_trainable=True)
    inputs = batch(folder)
    expected, _ = referred.truth(model, inputs, logits(tiny.llama(), inputs), LOSSES[loss][1])
    assert second["loss"] == pytest.approx(expected, rel=1e-5)
    assert second["dft/loss"] == pytest.approx(expected, rel=1e-5)
    assert abs(second["loss"] - first["loss"]) > 1e-3, "nothing was trained"
    if loss == "asft":
        assert abs(first["dft/kl"]) < 1e-6 < second["dft/kl"]


@pytest.mark.parametrize("loss", ["prift", "asft"])
def test_full_training_against_a_copy(loss, folder):
    (first, second), err = train(folder, json.dumps({**LOSSES[loss][0], "reference": "copy"}))
    assert err.count("; reference: a frozen copy of the model, as it began (one more forward pass") == 1
    model, inputs = tiny.llama(), batch(folder)
    model = type(model).from_pretrained(folder / "out" / "checkpoint-1")
    expected, _ = referred.truth(model, inputs, logits(tiny.llama(), inputs), LOSSES[loss][1])
    assert second["loss"] == pytest.approx(expected, rel=1e-5)
    assert abs(second["loss"] - first["loss"]) > 1e-3, "nothing was trained"
