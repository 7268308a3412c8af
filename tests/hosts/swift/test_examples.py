"""Every example in `example_configs/swift` is one that ms-swift's own parser takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dft_plugin.cli.checking import check
from dft_swift import arguments

pytest.importorskip("swift")

from support import swift_runs

pytestmark = pytest.mark.host

ROOT = Path(__file__).parents[3]
PLACE = ROOT / "example_configs" / "swift"
EXAMPLES = sorted(PLACE.glob("*.yaml"))
IDS = [path.stem for path in EXAMPLES]


def test_there_is_one_of_each_kind():
    assert IDS == ["full", "lora", "multimodal", "paper-qwen2.5-math-1.5b", "qlora"]


@pytest.mark.parametrize("path", EXAMPLES, ids=IDS)
def test_it_opens_with_its_command_and_passes_dft_check(path):
    assert path.read_text().splitlines()[0] == f"# dft train example_configs/swift/{path.name}"
    report = check(path)
    assert report.ok, report.obstacles()
    assert report.host.name == "swift"


@pytest.mark.parametrize("path", EXAMPLES, ids=IDS)
def test_the_parser_of_the_host_takes_every_key(path, home, seeing, tmp_path):
    """All of them, but what a machine without a network lacks: a tiny model stands in for the example's."""
    from swift.arguments import SftArguments
    from swift.utils import parse_args

    given = yaml.safe_load(path.read_text())
    given.pop("ENV", None)
    stand_in = seeing if path.stem == "multimodal" else {"model": "qwen2", "model_type": "qwen2", "template": "chatml"}
    kind = {key: stand_in[key] for key in ("model_type", "template")}
    given |= {**kind, "model": str(home / stand_in["model"]), "output_dir": str(tmp_path / "out"), "use_cpu": True}
    loss, words = arguments.take(swift_runs.words(given))
    assert loss == given["loss"]
    args, rest = parse_args(SftArguments, words)
    assert rest == []
    assert args.training_args.bf16
    assert args.tuner_type == ("full" if path.stem in ("full", "paper-qwen2.5-math-1.5b") else "lora")
    assert (args.quant_bits == 4) is (path.stem == "qlora")
    assert args.packing is (path.stem == "full")
    assert args.eval_strategy == ("steps" if path.stem == "lora" else "no")
    assert args.learning_rate == given["learning_rate"]


def test_the_paper_recipe_is_that_of_the_paper():
    """arXiv 2508.05629, section 4.1, on 8 GPUs."""
    given = yaml.safe_load((PLACE / "paper-qwen2.5-math-1.5b.yaml").read_text())
    assert given["learning_rate"] == 5e-5
    ranks = given["ENV"]["NPROC_PER_NODE"]
    assert given["per_device_train_batch_size"] * given["gradient_accumulation_steps"] * ranks == 256
    assert (given["max_length"], given["num_train_epochs"]) == (2048, 1)
    assert (given["lr_scheduler_type"], given["warmup_ratio"]) == ("cosine", 0.1)
    assert given["dataset"] == "AI-MO/NuminaMath-CoT#100000"
