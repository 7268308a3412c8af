"""The recipes: LLaMA-Factory's own parser takes each, and one of each architecture trains in it on stand-ins."""

from __future__ import annotations

import json
import os
from unittest import mock

import pytest

from dft_llamafactory import arguments
from dft_plugin.cli.checking import check

pytest.importorskip("llamafactory")

from support import factory, recipe_runs, tiny

pytestmark = pytest.mark.host


@pytest.mark.parametrize(("model", "lora", "faults"), recipe_runs.cells(seeing=True))
def test_the_parser_takes_every_key_and_the_loss_is_on(model, lora, faults, tmp_path):
    from llamafactory.hparams import get_train_args

    path = recipe_runs.written("llamafactory", tmp_path, model, lora=lora, faults=faults)
    report = check(path)
    assert (report.host.name, report.obstacles(), report.hints) == ("llamafactory", [], [])
    args = arguments.read([str(path)]).args
    args |= {"output_dir": str(tmp_path), "use_cpu": True}
    bf16 = mock.patch("transformers.training_args.is_torch_bf16_gpu_available", return_value=True)
    pure = mock.patch("llamafactory.hparams.parser.is_torch_bf16_gpu_available", return_value=True)
    # `fsdp` leaves variables behind that would shard the models of later tests.
    with bf16, pure, mock.patch.dict(os.environ):
        _, data, training, finetuning, _ = get_train_args(args)
    assert (finetuning.pure_bf16, training.bf16) == (bool(faults), not faults)
    assert finetuning.finetuning_type == ("lora" if lora else "full")
    assert training.max_grad_norm == (1 / 8 if faults else 1)
    assert data.dataset_dir == f"data/{data.dataset[0]}"
    assert training.adam_beta2 == 0.95


@pytest.mark.parametrize(
    ("model", "lora"), [pytest.param("llama-3.1-8b", True, marks=pytest.mark.full), ("deepseekmath-7b", False)]
)
def test_it_trains_on_stand_ins(model, lora, home, tmp_path):
    """A model of the same architecture, rows that `recipes data` has written, one process; the rest is the recipe."""
    rows = recipe_runs.prepared("llamafactory", tmp_path / "data", lambda pick: f"w{pick.randint(4, tiny.VOCAB - 1)}")
    given = {"gpus": 1, "path": str(home / "llama"), "data": str(tmp_path / "data")}
    path = recipe_runs.written("llamafactory", tmp_path, model, lora=lora, **given)
    read = arguments.read([str(path)])
    cpu = {"use_cpu": True, "bf16": False, "max_steps": 1, "disable_tqdm": True, "save_strategy": "no"}
    run = factory.train({**read.args, **cpu, "output_dir": str(tmp_path / "out")}, "dft")
    (entry, *_) = [one for one in run.trainer.state.log_history if "loss" in one]
    assert entry["dft/loss"] == pytest.approx(run.expected, rel=1e-4)
    # Of each row the answer and its end; the template `default` has a line break behind that, which is no token here.
    assert entry["dft/tokens"] == sum(len(row["messages"][1]["content"].split()) + 1 for row in rows)
    assert json.loads((tmp_path / "data" / "made_of.json").read_text())["rows"] == len(rows)
