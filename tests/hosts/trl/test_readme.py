"""README's config trains, with no more than model, data and folder of its own, and what a CPU needs."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support import oracle, readme, tiny, training

pytestmark = pytest.mark.host

TEMPLATE = "{% for m in messages %}<s> {{ m['content'] }} </s>{% endfor %}"


def conversations(count):
    """Rows with the columns of NuminaMath-CoT."""
    pick = random.Random(0)
    for _ in range(count):
        asked, answer = (" ".join(f"w{pick.randint(3, 99)}" for _ in range(pick.randint(1, 14))) for _ in range(2))
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        yield {"source": "made", "problem": asked, "solution": answer, "messages": messages}


def test_the_config_trains_dft_by_the_command_that_stands_beside_it(tmp_path):
    model, tokenizer = tiny.llama(), training.tokenizer()
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    config = yaml.safe_load(readme.blocks()["TRL"])
    # One step sees every row, so that its loss does not depend on their order.
    rows = list(conversations(config["per_device_train_batch_size"] * config["gradient_accumulation_steps"]))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config |= {"model_name_or_path": "model", "dataset_name": "data", "output_dir": "out"}
    config |= {"max_steps": 1, "logging_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False}
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(config))

    done = subprocess.run(
        [sys.executable, "-m", "dft_plugin.cli", "train", "sft.yaml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ids = [torch.tensor([tokenizer.apply_chat_template(row["messages"])["input_ids"]]) for row in rows]
    losses = [oracle.token_losses(model(row).logits[:, :-1], row[:, 1:]) for row in ids]
    (logged,) = json.loads((tmp_path / "out" / "checkpoint-1" / "trainer_state.json").read_text())["log_history"]
    assert logged["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-6)
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(tensor.any() for tensor in adapter.values()), "nothing was trained"
