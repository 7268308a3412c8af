"""Every example in `example_configs/llamafactory` is one that LLaMA-Factory's own parser takes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest import mock

import pytest

from dft_llamafactory import arguments
from dft_plugin.cli.checking import check

pytest.importorskip("llamafactory")

from support import factory

pytestmark = pytest.mark.host

ROOT = Path(__file__).parents[3]
PLACE = ROOT / "example_configs" / "llamafactory"
EXAMPLES = sorted(PLACE.glob("*.yaml"))
IDS = [path.stem for path in EXAMPLES]


@pytest.mark.parametrize("path", EXAMPLES, ids=IDS)
def test_it_opens_with_its_command_and_passes_dft_check(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(f"dft train example_configs/llamafactory/{path.name}")
    report = check(path)
    assert report.ok, report.obstacles()
    assert report.host.name == "llamafactory"


@pytest.mark.parametrize("path", EXAMPLES, ids=IDS)
def test_the_parser_of_the_host_takes_every_key(path, monkeypatch, tmp_path):
    """All of them, but what a machine without GPUs lacks: bfloat16 there is pretended, DeepSpeed left out."""
    from llamafactory.hparams import get_train_args

    monkeypatch.chdir(ROOT)
    args = arguments.read([str(path)]).args
    args |= {"output_dir": str(tmp_path), "use_cpu": True}
    if factory.OLD:
        args.pop("neat_packing", None)
    if "deepspeed" in args:
        assert json.loads(Path(args.pop("deepspeed")).read_text())["zero_optimization"]["stage"] == 3
    bf16 = mock.patch("transformers.training_args.is_torch_bf16_gpu_available", return_value=True)
    # `fsdp` leaves variables behind that would shard the models of later tests.
    with bf16, mock.patch.dict(os.environ):
        model, data, training, finetuning, _ = get_train_args(args)
    assert (finetuning.stage, training.do_train, training.bf16) == ("sft", True, True)
    assert data.dataset == ["numina"]
    assert (model.quantization_bit == 4) is (path.stem == "qlora")
    if path.stem == "fsdp":
        assert training.fsdp_config["version"] == 2


def test_the_paper_recipe_is_that_of_the_paper():
    """arXiv 2508.05629, section 4.1, on 8 GPUs."""
    args = arguments.read([str(PLACE / "paper-qwen2.5-math-1.5b.yaml")]).args
    assert args["learning_rate"] == 5e-5
    assert args["per_device_train_batch_size"] * args["gradient_accumulation_steps"] * 8 == 256
    assert (args["cutoff_len"], args["num_train_epochs"]) == (2048, 1)
    assert (args["lr_scheduler_type"], args["warmup_ratio"]) == ("cosine", 0.1)
    data = json.loads((PLACE / "dataset_info.json").read_text())["numina"]
    assert (data["hf_hub_url"], data["num_samples"]) == ("AI-MO/NuminaMath-CoT", 100_000)
