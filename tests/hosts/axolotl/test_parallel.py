"""Ranks that share a model, on a CPU: tensor parallelism and FSDP2; and a worker of Ray."""

from __future__ import annotations

import pytest

pytest.importorskip("axolotl")

import torch
from support import tiny, training
from support.axolotl_runs import FSDP2, LORA, PLUGIN, TWO_RANKS, command, train, write_config
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.host

SHARED = {
    "tensor parallel": {"tensor_parallel_size": 2},
    # The rows of a step are those of one process.
    "fsdp2": {**FSDP2, "micro_batch_size": 1, "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("kind", ["tensor parallel", pytest.param("fsdp2", marks=pytest.mark.newest)])
def test_two_ranks_that_share_a_model_train_what_one_process_does(kind, home, expected):
    write_config(home, max_steps=2, plugins=[PLUGIN, "cpu_mesh.CpuMesh"], **SHARED[kind])
    done = command(home, "axolotl", "train", "config.yml", "--launcher", "torchrun", *TWO_RANKS)
    assert done.returncode == 0, done.stderr
    trained = torch.load(home / "trained.pt")
    assert "lm_head.weight" in trained["sharded"]
    logs = [entry for entry in trained["logs"] if "loss" in entry]
    for mine, theirs in zip(logs, expected.logs, strict=True):
        for key in ("loss", "dft/nll", "dft/tokens", "dft/effective_tokens"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5), key
    assert tiny.max_gap(trained["weights"], expected.weights) < 1e-6


def test_adapters_on_a_model_that_ranks_share_are_compared_with_its_base(home):
    training.lora(AutoModelForCausalLM.from_pretrained(home / "models" / "llama")).save_pretrained(home / "adapter")
    loss = {"name": "asft", "strength": 0.5}
    config = {**LORA, "loss": loss, "max_steps": 2, "learning_rate": 0.1, "lora_model_dir": "adapter"}
    one = train(write_config(home, "one.yml", **config))
    write_config(home, plugins=[PLUGIN, "cpu_mesh.CpuMesh"], **config, **FSDP2, micro_batch_size=2)
    done = command(home, "axolotl", "train", "config.yml", "--launcher", "torchrun", *TWO_RANKS)
    assert done.returncode == 0, done.stderr
    trained = torch.load(home / "trained.pt")
    assert any("lora_A" in name for name in trained["sharded"])
    logs = [entry for entry in trained["logs"] if "loss" in entry]
    for mine, theirs in zip(logs, one.logs, strict=True):
        for key in ("loss", "dft/loss", "dft/kl"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5), key
    weights = {name: value for name, value in trained["weights"].items() if name in one.weights}
    assert tiny.max_gap(weights, one.weights) < 1e-6


REFUSED = {
    "tensor parallel": SHARED["tensor parallel"],
    "fsdp2": FSDP2,
}


@pytest.mark.parametrize("kind", [pytest.param("tensor parallel", marks=pytest.mark.full), "fsdp2"])
def test_a_copy_beside_a_model_that_ranks_share_is_refused(kind, home):
    loss = {"name": "asft", "reference": "copy"}
    write_config(home, max_steps=1, loss=loss, plugins=[PLUGIN, "cpu_mesh.CpuMesh"], **REFUSED[kind])
    done = command(home, "axolotl", "train", "config.yml", "--launcher", "torchrun", *TWO_RANKS)
    assert done.returncode != 0
    said = "`reference: copy` was never run with a model whose weights are sharded like this one's over ranks"
    assert said in " ".join(done.stderr.split())
    assert not (home / "trained.pt").exists()


def test_a_worker_of_ray(home, expected):
    """The function that Ray calls on each worker, with the config as the driver sends it."""
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.cli.train import ray_train_func
    from axolotl.integrations.base import PluginManager
    from safetensors.torch import load_file
    from support.axolotl_runs import SAVED, history

    sent = load_cfg(str(write_config(home, **SAVED, use_ray=True))).to_dict()
    PluginManager.get_instance().plugins.clear()
    ray_train_func({"cfg": sent, "cli_args": TrainerCliArgs()})
    logs = history(home, "out/config.yml", 2)
    assert [entry["loss"] for entry in logs] == pytest.approx([entry["loss"] for entry in expected.logs], rel=1e-6)
    weights = load_file(home / "out" / "config.yml" / "checkpoint-2" / "model.safetensors")
    assert tiny.max_gap(weights, expected.weights) < 1e-6
