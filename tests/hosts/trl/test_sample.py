"""What `dft sample` writes, TRL reads: rows by `dft train`, pairs by its DPOTrainer."""

from __future__ import annotations

import json

import pytest
from datasets import load_dataset
from support import answering
from trl import DPOConfig, DPOTrainer

from dft_plugin.config import handover
from dft_plugin.config.plugins import build_catalogue
from dft_trl import run

pytestmark = pytest.mark.host

CHECKS = "def long(question, answer, row):\n    return len(answer.split()) > 2\n"
YAML = """\
model_name_or_path: model
datasets: [{path: json, data_files: data.jsonl}]
output_dir: out
max_steps: 1
report_to: none
use_cpu: true
bf16: false
gradient_checkpointing: false
save_strategy: steps
save_steps: 1
logging_steps: 1
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"trl_checks_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CHECKS)
    answering.model(tmp_path / "model")
    answering.questions(tmp_path / "data.jsonl", 8)
    (tmp_path / "sft.yaml").write_text(YAML)
    common = ["sft.yaml", "--verifier", f"{name}:long", "--max-new-tokens", 8, "--k", 6]

    def sample(*more):
        done = answering.sample(*common, *more)
        assert done.exit_code == 0, (done.output, done.exception)

    sample("--out", "answers.jsonl")
    sample("--out", "pairs.jsonl", "--pairs")
    return tmp_path


def test_trl_trains_the_rows_and_their_answers_alone(home):
    rows = answering.read(home / "answers.jsonl")
    (home / "next.yaml").write_text(YAML.replace("data.jsonl", "answers.jsonl"))
    run.main([*handover.words(build_catalogue().settings("dft")), "--config", "next.yaml"])
    state = json.loads((home / "out" / "checkpoint-1" / "trainer_state.json").read_text())
    tokens = state["log_history"][0]["dft/tokens"]
    longest = max(len(row["completion"][0]["content"].split()) for row in rows)
    assert 0 < tokens <= 8 * (longest + 1)


def test_dpo_trains_the_pairs(home):
    data = load_dataset("json", data_files=str(home / "pairs.jsonl"), split="train")
    arguments = DPOConfig(
        str(home / "dpo"),
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = DPOTrainer(str(home / "model"), args=arguments, train_dataset=data)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0
