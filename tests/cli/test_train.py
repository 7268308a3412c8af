"""`dft train` starts TRL's own launcher with the loss active, in one process and in two."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from support import oracle, tiny, training

pytestmark = pytest.mark.host

YAML = """\
model_name_or_path: model
dataset_name: data
loss: dft
output_dir: out put
max_length: 64
per_device_train_batch_size: 4
max_steps: 2
learning_rate: 1.0e-2
lr_scheduler_type: constant
optim: sgd
logging_steps: 1
report_to: none
save_steps: 2
use_cpu: true
bf16: false
dtype: float32
gradient_checkpointing: false
"""

# Accelerate starts CPU ranks with mpirun only; torchrun, which starts GPU ranks, serves a CPU (gloo) as well.
TWO_PROCESSES = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_machines: 1
num_processes: 2
use_cpu: false
mixed_precision: 'no'
"""


@pytest.fixture
def folder(tmp_path):
    """A user's folder: a model, a data set, a config, and a space in its name."""
    home = tmp_path / "a run"
    tiny.llama().save_pretrained(home / "model")
    training.tokenizer().save_pretrained(home / "model")
    (home / "data").mkdir()
    lines = [training.as_text(row) for row in training.rows()]
    (home / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (home / "sft.yaml").write_text(YAML)
    return home


def dft(folder, *words, config="sft.yaml"):
    return subprocess.run(
        [sys.executable, "-m", "dft_plugin", "train", config, *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def history(folder, out="out put"):
    state = Path(folder) / out / "checkpoint-2" / "trainer_state.json"
    return json.loads(state.read_text())["log_history"]


def test_one_process_trains_the_loss_of_the_yaml(folder):
    done = dft(folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("dft: loss dft(alpha=1.0, floor=0.0) is on for LlamaForCausalLM (SFTTrainer)") == 1
    (first, _) = history(folder)
    # The loss is p * nll token by token, so it lies between the two bounds that p alone and nll alone give.
    assert first["loss"] == pytest.approx(first["dft/loss"], rel=1e-5)
    assert first["dft/loss"] < 0.1 * first["dft/nll"]
    assert "entropy" in first
    assert (folder / "sft.yaml").read_text() == YAML


def test_overrides_reach_the_run(folder):
    done = dft(folder, "loss.alpha=0", "output_dir=other", "learning_rate=0.0")
    assert done.returncode == 0, done.stderr
    (first, _) = history(folder, "other")
    assert first["dft/loss"] == pytest.approx(first["dft/nll"], rel=1e-6)
    assert first["learning_rate"] == 0


def test_json_that_trl_cannot_read_and_the_spelling_of_a_command_line_train(folder):
    """PyYAML takes no tabs. The file has a mark of UTF-8, too, and an umlaut that an ASCII locale cannot decode."""
    given = {**yaml.safe_load(YAML), "loss": {"name": "dft", "alpha": 0.5}, "run_name": "Übung"}
    text = json.dumps(given, indent="\t", ensure_ascii=False)
    (folder / "sft.json").write_bytes(codecs.BOM_UTF8 + text.encode())
    words = ["--loss.alpha", "0", "--output-dir", "other", "--learning-rate=0.0", "loss[kernel]=chunked"]
    done = dft(folder, *words, config="sft.json")
    assert done.returncode == 0, done.stderr
    assert "dft: loss dft(alpha=0.0, floor=0.0) is on" in done.stderr
    (first, _) = history(folder, "other")
    assert first["dft/loss"] == pytest.approx(first["dft/nll"], rel=1e-6)
    assert first["learning_rate"] == 0


def test_the_first_loss_equals_float64(folder):
    """From the text in the data set on: what TRL tokenises, collates and counts."""
    done = dft(folder, "per_device_train_batch_size=24", "train_sampling_strategy=sequential")
    assert done.returncode == 0, done.stderr
    tokenizer, model = training.tokenizer(), tiny.llama()
    losses = []
    for line in (folder / "data" / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        # TRL appends the end-of-sequence token to a completion.
        ids = torch.tensor([prompt + tokenizer(row["completion"])["input_ids"] + [2]])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        losses.append(oracle.token_losses(model(ids).logits[:, :-1], labels[:, 1:]).detach())
    assert history(folder)[0]["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-6)


def test_two_processes_are_started_by_the_hosts_launcher(folder):
    (folder / "two.yaml").write_text(TWO_PROCESSES)
    one = dft(folder, "output_dir=one")
    two = dft(folder, "output_dir=two", "per_device_train_batch_size=2", "accelerate_config=two.yaml")
    assert two.returncode == 0, two.stderr
    assert one.returncode == 0, one.stderr
    for mine, theirs in zip(history(folder, "one"), history(folder, "two"), strict=True):
        assert theirs["dft/tokens"] == mine["dft/tokens"]
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-5)
    assert two.stderr.count("dft: loss dft") == 1


def test_a_run_that_fails_ends_with_its_own_error_and_exit_code(folder):
    done = dft(folder, "model_name_or_path=nowhere/at-all")
    assert done.returncode == 1
    assert "CalledProcessError" not in done.stderr
    assert "OSError" in done.stderr
