"""README's config trains, with no more than model, data and folder of its own, and what a CPU needs."""

from __future__ import annotations

import json

import pytest
import yaml
from safetensors.torch import load_file

pytest.importorskip("swift")

from support import readme, swift_runs

pytestmark = pytest.mark.host


def rows():
    """Rows with the columns of NuminaMath-CoT."""
    for row in swift_runs.plain_rows():
        asked, answered = (message["content"] for message in row["messages"])
        yield {"source": "made", "problem": asked, "solution": answered, **row}


def test_the_config_trains_dft_by_the_command_that_stands_beside_it(home, tmp_path):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    # What a tiny model does not say of itself, and what a CPU needs.
    needed = {"model_type": "qwen2", "template": "chatml", "torch_dtype": "float32", "use_cpu": True}
    config = yaml.safe_load(readme.blocks()["ms-swift"]) | needed
    config |= {"model": str(home / "qwen2"), "dataset": "data.jsonl", "add_version": False, "report_to": "none"}
    config |= {"max_steps": 2, "logging_steps": 1, "output_dir": "out", "check_model": False}
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(config))

    given = {**config, "dataset": str(tmp_path / "data.jsonl"), "output_dir": str(tmp_path / "here")}
    here = swift_runs.train({key: value for key, value in given.items() if key != "loss"}, config["loss"])
    assert here.losses[0] == pytest.approx(here.expected, rel=1e-5)
    done = swift_runs.command("train", "sft.yaml", cwd=tmp_path, script="dft")
    assert done.returncode == 0, done.stderr[-3000:]
    logged = [entry["loss"] for entry in swift_runs.history(tmp_path / "out")]
    assert logged == pytest.approx(here.losses, rel=1e-5)
    adapter = load_file(tmp_path / "out" / "checkpoint-2" / "adapter_model.safetensors")
    assert all(tensor.any() for tensor in adapter.values()), "nothing was trained"
