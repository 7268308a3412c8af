"""The recipes: ms-swift's own parser takes each, and one of each architecture trains in it on stand-ins."""

from __future__ import annotations

import json

import pytest
import yaml

from dft_plugin.cli.checking import check
from dft_swift import arguments
from recipes.data import write as write_data
from recipes.paper import MULTIMODAL

pytest.importorskip("swift")

from support import recipe_runs, swift_runs

pytestmark = pytest.mark.host


@pytest.mark.parametrize(("model", "lora", "faults"), recipe_runs.cells(seeing=True))
def test_the_parser_takes_every_key_and_the_loss_is_on(model, lora, faults, home, seeing, tmp_path):
    """All of them, but what a machine without a network lacks: a tiny model stands in for the recipe's."""
    from swift.arguments import SftArguments
    from swift.utils import parse_args

    path = recipe_runs.written("swift", tmp_path, model, lora=lora, faults=faults)
    report = check(path)
    assert (report.host.name, report.obstacles(), report.hints) == ("swift", [], [])
    given = yaml.safe_load(path.read_text())
    assert given.pop("ENV") == {"NPROC_PER_NODE": 8}
    kind = (
        {"model_type": seeing["model_type"], "template": seeing["template"]}
        if "vl" in model
        else {"model_type": "qwen2"}
    )
    stand_in = "llava" if "vl" in model else "qwen2"
    given |= {**kind, "model": str(home / stand_in), "output_dir": str(tmp_path / "out"), "use_cpu": True}
    loss, words = arguments.take(swift_runs.words(given))
    assert loss == "dft"
    args, rest = parse_args(SftArguments, words)
    assert rest == []
    assert (args.bf16, args.fp16, args.truncation_strategy) == (True, False, "right")
    assert str(args.torch_dtype) == ("torch.bfloat16" if lora or faults else "torch.float32")
    assert bool(args.fsdp) is (not lora and not faults)
    assert args.max_grad_norm == (1 / 8 if faults else 1)


@pytest.mark.parametrize(
    ("model", "lora"), [pytest.param("qwen2.5-math-1.5b", False, marks=pytest.mark.full), ("qwen2.5-coder-3b", True)]
)
def test_it_trains_on_stand_ins(model, lora, home, tmp_path):
    """A model of the same architecture, rows that `recipes data` has written, one process; the rest is the recipe."""
    rows = recipe_runs.prepared("swift", tmp_path / "data", lambda pick: pick.choice(swift_runs.LETTERS))
    given = {"gpus": 1, "path": str(home / "qwen2"), "data": str(tmp_path / "data")}
    path = recipe_runs.written("swift", tmp_path, model, lora=lora, **given)
    recipe = yaml.safe_load(path.read_text())
    recipe.pop("loss")
    cpu = {
        "torch_dtype": "float32",
        "bf16": False,
        "fp16": False,
        "use_cpu": True,
        "optim": "adamw_torch",
        "max_steps": 1,
    }
    other = {"model_type": "qwen2", "output_dir": str(tmp_path / "out"), "add_version": False, "dataset_num_proc": 1}
    quiet = {"dataloader_num_workers": 0, "check_model": False, "save_strategy": "no", "disable_tqdm": True}
    run = swift_runs.train({**recipe, **cpu, **other, **quiet}, "dft")
    (entry, *_) = [one for one in run.trainer.state.log_history if "loss" in one]
    assert entry["dft/loss"] == pytest.approx(run.expected, rel=1e-4)
    # A token for each letter and space, and two that end a turn.
    assert entry["dft/tokens"] == sum(len(row["messages"][1]["content"]) + 2 for row in rows)
    assert json.loads((tmp_path / "data" / "made_of.json").read_text())["faults"] == []


@pytest.mark.full
def test_a_model_that_sees_trains_on_stand_ins(home, seeing, tmp_path):
    """Pictures and questions out of a source with columns of other names; LLaVA stands in for Qwen2.5-VL."""
    seen = [json.loads(line) for line in (home / "seen.jsonl").read_text().splitlines()]
    rows = [
        {"pic": row["images"][0], "ask": row["messages"][0]["content"][7:], "say": row["messages"][1]["content"]}
        for row in seen
    ]
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"question": "ask", "answer": "say", "image": "pic"}
    assert write_data("swift", MULTIMODAL, tmp_path / "data", source=str(source), columns=columns) == len(rows)
    given = {"gpus": 1, "path": str(home / seeing["model"]), "data": str(tmp_path / "data")}
    recipe = yaml.safe_load(recipe_runs.written("swift", tmp_path, "qwen2.5-vl-3b", lora=True, **given).read_text())
    recipe.pop("loss")
    kind = {key: seeing[key] for key in ("model_type", "template")}
    cpu = {
        "torch_dtype": "float32",
        "bf16": False,
        "fp16": False,
        "use_cpu": True,
        "optim": "adamw_torch",
        "max_steps": 1,
    }
    other = {"output_dir": str(tmp_path / "out"), "add_version": False, "dataset_num_proc": 1, "check_model": False}
    quiet = {"dataloader_num_workers": 0, "save_strategy": "no", "disable_tqdm": True}
    run = swift_runs.train({**recipe, **kind, **cpu, **other, **quiet}, "dft")
    (entry, *_) = [one for one in run.trainer.state.log_history if "loss" in one]
    assert entry["dft/loss"] == pytest.approx(run.expected, rel=1e-4)
    assert "pixel_values" in run.batches[0]
