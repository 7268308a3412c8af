"""`dft train` in TRL on a folder of a user's: the YAML, the data set in it, and what TRL makes of that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dft_plugin.config import handover
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.config.reading import load
from support import tiny, training

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


def make_folder(home: Path) -> Path:
    """Write a model and 24 rows of text, with a column `old_logp` of one number each."""
    tiny.llama().save_pretrained(home / "model")
    training.tokenizer().save_pretrained(home / "model")
    (home / "data").mkdir()
    lines = [{**training.as_text(row), "old_logp": -number / 4} for number, row in enumerate(training.rows())]
    (home / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return home


def rows(home: Path) -> list[dict[str, Any]]:
    """Return the rows as TRL tokenises them: an end-of-sequence token after each completion."""
    tokenizer, made = training.tokenizer(), []
    for line in (home / "data" / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt, answer = (tokenizer(row[key])["input_ids"] for key in ("prompt", "completion"))
        labels = [*[-100] * len(prompt), *answer, 2]
        made.append({"input_ids": [*prompt, *answer, 2], "labels": labels, "old_logp": row["old_logp"]})
    return made


def batch(home: Path) -> dict[str, Tensor]:
    """Return all rows in one batch."""
    return training.collate(rows(home))


def write(home: Path, loss: Any, more: str = "") -> Path:
    """Write a YAML with a loss; `more` are lines of it."""
    (home / "sft.yaml").write_text(f"{YAML}{more}loss: {json.dumps(loss)}\n")
    return home / "sft.yaml"


def train(home: Path, loss: Any, more: str = "") -> tuple[list[dict[str, float]], str]:
    """Run `dft train` of a YAML in a process of its own. Returns the log, and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "dft_plugin.cli", "train", write(home, loss, more).name],
        capture_output=True,
        text=True,
        cwd=home,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return _log(home, 2), done.stderr


def train_here(home: Path, loss: Any, monkeypatch: pytest.MonkeyPatch, more: str = "") -> list[dict[str, float]]:
    """Run what `dft train` starts on each rank for a YAML, one step of it, here. Returns the log."""
    from dft_trl import run

    path = write(home, loss, more)
    settings = build_catalogue().settings(load(path, []).loss)
    monkeypatch.chdir(home)
    run.main([*handover.words(settings), "--config", path.name, "--max_steps", "1"])
    return _log(home, 1)


def _log(home: Path, step: int) -> list[dict[str, float]]:
    state = home / "out" / f"checkpoint-{step}" / "trainer_state.json"
    log: list[dict[str, float]] = json.loads(state.read_text())["log_history"]
    return log
