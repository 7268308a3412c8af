"""The recipes: Axolotl accepts each, and one trains in it on stand-ins."""

from __future__ import annotations

import json

import pytest
import yaml

pytest.importorskip("axolotl")

from axolotl.cli.config import prepare_plugins
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault
from support import axolotl_runs, recipe_runs

from dft_plugin.cli.checking import check

pytestmark = [pytest.mark.host, pytest.mark.newest]

MACHINE = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 8, "compute_capability": "sm_90"}
ENVIRONMENT = {"torch_version": "2.13.0"}


@pytest.mark.parametrize(("model", "lora", "faults"), recipe_runs.cells())
def test_axolotl_accepts_it_and_the_loss_is_on(model, lora, faults, tmp_path):
    path = recipe_runs.written("axolotl", tmp_path, model, lora=lora, faults=faults)
    report = check(path)
    assert (report.host.name, report.obstacles(), report.hints) == ("axolotl", [], [])
    given = yaml.safe_load(path.read_text())
    config = DictDefault(given)
    prepare_plugins(config)
    valid = validate_config(config, capabilities=MACHINE, env_capabilities=ENVIRONMENT)
    assert set(given) <= set(valid.to_dict()), "Axolotl drops keys that it does not know"
    assert (valid.loss, bool(valid.deepspeed), bool(valid.fsdp_config)) == (
        "dft",
        not lora and not faults,
        bool(faults),
    )


@pytest.mark.parametrize(("model", "lora"), [("llama-3.1-8b", True), ("qwen2.5-math-1.5b", False)])
@pytest.mark.full
def test_it_trains_on_stand_ins(model, lora, home):
    """A model of the same architecture, rows that `recipes data` has written, one process; the rest is the recipe."""
    rows = recipe_runs.prepared("axolotl", home / "recipe", lambda pick: f"word{pick.randint(0, 59)}")
    architecture = "models/qwen2" if model.startswith("qwen") else "models/llama"
    path = recipe_runs.written("axolotl", home, model, lora=lora, gpus=1, path=architecture, data="recipe")
    given = yaml.safe_load(path.read_text())
    cpu = {
        key: axolotl_runs.FULL[key]
        for key in ("bf16", "fp16", "tf32", "attn_implementation", "gradient_checkpointing")
    }
    lora_cpu = {key: value for key, value in axolotl_runs.LORA.items() if key.endswith("_kernel")} if lora else {}
    # As many passes as there are rows for.
    other = {
        "gradient_accumulation_steps": 3,
        "optimizer": "adamw_torch",
        "max_steps": 1,
        "dataset_prepared_path": "prepared-recipe",
        "dataset_num_proc": 1,
    }
    tokenizer = {"tokenizer_config": "models/llama"} if model.startswith("qwen") else {}
    path.write_text(yaml.safe_dump({**given, **cpu, **lora_cpu, **other, **tokenizer}))
    done = axolotl_runs.train(path)
    (entry,) = done.logs
    assert entry["dft/loss"] == pytest.approx(done.expected[0], rel=1e-5)
    assert entry["dft/tokens"] == sum(len(row["messages"][1]["content"].split()) + 1 for row in rows)
    assert json.loads((home / "recipe" / "made_of.json").read_text())["seed"] == 1
