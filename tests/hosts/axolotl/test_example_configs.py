"""Every config that we ship is one that Axolotl accepts, and that `dft check` finds nothing wrong with."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

pytest.importorskip("axolotl")

from axolotl.cli.config import prepare_plugins
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault

pytestmark = [pytest.mark.host, pytest.mark.newest]

FOLDER = Path(__file__).parents[3] / "example_configs" / "axolotl"
CONFIGS = sorted(FOLDER.glob("*.yml"))

# What validate_config asks of the machine that will train: eight GPUs of a recent kind.
MACHINE = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 8, "compute_capability": "sm_90"}
ENVIRONMENT = {"torch_version": "2.13.0"}


def test_the_six_configs_are_there():
    assert {path.stem for path in CONFIGS} == {
        "full",
        "lora",
        "qlora",
        "packed-fsdp2",
        "packed-zero3",
        "paper-qwen2.5-math-1.5b",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_axolotl_accepts_it(path):
    config = DictDefault(yaml.safe_load(path.read_text()))
    prepare_plugins(config)
    valid = validate_config(config, capabilities=MACHINE, env_capabilities=ENVIRONMENT)
    known = set(valid.to_dict())
    assert set(yaml.safe_load(path.read_text())) <= known, "Axolotl drops keys that it does not know"
    assert valid.loss


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_dft_check_finds_nothing_wrong(path):
    # Here, since the releases of typer and click that Axolotl's pins bring together warn of each other.
    from dft_plugin.cli.checking import check

    report = check(path)
    assert report.ok, report.obstacles()
    assert report.host.name == "axolotl"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_opens_with_the_command_that_runs_it(path):
    first = path.read_text().splitlines()[0]
    assert f"axolotl train example_configs/axolotl/{path.name}" in first


def test_the_papers_recipe():
    config = yaml.safe_load((FOLDER / "paper-qwen2.5-math-1.5b.yml").read_text())
    # 256 sequences a step on the 8 GPUs that its command starts.
    assert config["micro_batch_size"] * config["gradient_accumulation_steps"] * 8 == 256
    expected = {
        "learning_rate": 5e-5,
        "sequence_len": 2048,
        "num_epochs": 1,
        "lr_scheduler": "cosine",
        "warmup_ratio": 0.1,
    }
    assert {key: config[key] for key in expected} == expected
    assert config["datasets"][0]["split"] == "train[:100000]"
