"""SmolLM2-135M-Instruct answers sums of reasoning-gym, which says what is right."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import reasoning_gym
from support import answering

from demo.model import prepare_model


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The folder in DFT_SMOLLM2, or what `make demo` trains."""
    folder = Path(os.environ.get("DFT_SMOLLM2") or tmp_path_factory.mktemp("smollm2") / "model")
    prepare_model(folder)
    return folder


@pytest.mark.slow
def test_it_is_right_now_and_then_and_its_right_answers_are_kept(smollm2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shape = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    items = list(reasoning_gym.create_dataset("chain_sum", size=8, seed=5, **shape))
    answering.write(tmp_path / "data.jsonl", items)
    asked = ["--model", smollm2, "--data", "data.jsonl", "--verifier", "reasoning-gym", "--extract", r"-?\d+"]
    done = answering.sample(*asked, "--k", 4, "--max-new-tokens", 48, "--temperature", 0.7, "--batch-size", 16)
    assert done.exit_code == 0, (done.output, done.exception)
    counts = json.loads((tmp_path / "answers.jsonl.progress.json").read_text())["counts"]
    rows = answering.read(tmp_path / "answers.jsonl")
    assert counts["answers"] == 32
    assert 0 < counts["right"] < 32
    assert len(rows) == counts["right"]
    truth = {item["question"]: item["answer"] for item in items}
    for row in rows:
        assert truth[row["prompt"][0]["content"]] in row["completion"][0]["content"]
