"""Axolotl on tiny models and tiny data: its own functions in this process, or its own commands in another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from packaging.version import Version
from safetensors.torch import load_file
from torch import Tensor

from support import oracle, tiny

PLUGIN = "dft_axolotl.DFTPlugin"

ENVIRONMENT = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
}

# A step shows its whole gradient: SGD, a rate of 1, nothing clipped. The rest is what Axolotl needs on a CPU.
FULL: dict[str, Any] = {
    "base_model": "models/llama",
    "datasets": [{"path": "data/alpaca.jsonl", "ds_type": "json", "type": "alpaca"}],
    "plugins": [PLUGIN],
    "loss": "dft",
    "sequence_len": 128,
    "sample_packing": False,
    "pad_to_sequence_len": False,
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_steps": 3,
    "num_epochs": 1,
    "optimizer": "sgd",
    "lr_scheduler": "constant",
    "learning_rate": 1.0,
    "max_grad_norm": 0.0,
    "warmup_steps": 0,
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "attn_implementation": "sdpa",
    "gradient_checkpointing": False,
    "val_set_size": 0,
    "logging_steps": 1,
    "save_strategy": "no",
    "seed": 42,
    "dataset_num_proc": 1,
}
LORA: dict[str, Any] = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "lora_target_linear": True,
    # Axolotl's fused kernels, on by default where the dropout is 0, need CUDA.
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
    "lora_embedding_kernel": False,
}
QLORA: dict[str, Any] = {**LORA, "adapter": "qlora", "load_in_4bit": True}
QWEN2: dict[str, Any] = {
    "base_model": "models/qwen2",
    # For a Qwen2 model transformers would make Qwen's own tokenizer of these files.
    "tokenizer_config": "models/llama",
}
PACKED: dict[str, Any] = {"sample_packing": True, "pad_to_sequence_len": True, "micro_batch_size": 1}
FSDP2: dict[str, Any] = {
    "fsdp_version": 2,
    "fsdp_config": {
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
        "reshard_after_forward": True,
        "state_dict_type": "FULL_STATE_DICT",
    },
}
# For runs by a command, of which nothing but the files is left.
SAVED: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
TWO_RANKS = ("--nproc_per_node=2", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0")
ON = "dft: loss dft(alpha=1.0, floor=0.0) is on for LlamaForCausalLM (AxolotlTrainer)"


def since(version: str) -> pytest.MarkDecorator:
    """Mark what older releases of Axolotl do not have."""
    reason = f"Axolotl {version} and newer"
    return pytest.mark.skipif(Version(metadata.version("axolotl")) < Version(version), reason=reason)


def write_config(home: Path, name: str = "config.yml", drop: Sequence[str] = (), **changes: Any) -> Path:
    """Write a YAML, or JSON with tabs, of `FULL` with changes."""
    config = {**FULL, "output_dir": f"out/{name}", "dataset_prepared_path": "prepared", **changes}
    path = home / name
    kept = {key: value for key, value in config.items() if key not in drop}
    path.write_text(json.dumps(kept, indent="\t") if path.suffix == ".json" else yaml.safe_dump(kept))
    return path


@dataclass
class Run:
    """A training run.

    Attributes:
        trainer: Axolotl's.
        expected: the float64 loss of every step's batches, under the weights of that time.
    """

    trainer: Any
    expected: list[float] = field(default_factory=list)

    @property
    def logs(self) -> list[dict[str, float]]:
        return [entry for entry in self.trainer.state.log_history if "loss" in entry]

    @property
    def evaluations(self) -> list[dict[str, float]]:
        return [entry for entry in self.trainer.state.log_history if "eval_loss" in entry]

    @property
    def weights(self) -> dict[str, Tensor]:
        named = self.trainer.model.named_parameters()
        return {name: p.detach().clone() for name, p in named if p.requires_grad}


def prepare(config: Path) -> tuple[Any, Any]:
    """Load a config and make the trainer, as `axolotl train` does. Returns (cfg, trainer)."""
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import setup_model_and_trainer

    cfg = load_cfg(str(config))
    data = load_datasets(cfg=cfg, cli_args=TrainerCliArgs())
    # `seed:` does not reach the initialisation of an adapter.
    torch.manual_seed(5)
    trainer, *_ = setup_model_and_trainer(cfg, data)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name and not cfg.lora_model_dir:
            # Zero at first, so that the adapter would not show in the loss of the first step.
            torch.nn.init.normal_(parameter, std=0.05)
    return cfg, trainer


def train(config: Path, resume: str | None = None) -> Run:
    """Train, and compute by hand what every logged loss should have been."""
    from axolotl.train import execute_training

    cfg, trainer = prepare(config)
    run = Run(trainer)
    sums: list[tuple[float, int, float]] = []
    step = trainer.training_step

    def training_step(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        sums.append(by_hand(model, inputs))
        if len(sums) == cfg.gradient_accumulation_steps:
            total, count = sum(s for s, _, _ in sums), sum(n for _, n, _ in sums)
            # A router's loss is averaged over micro-batches by their tokens.
            run.expected.append(total / count + sum(n * router for _, n, router in sums) / count)
            sums.clear()
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = training_step
    execute_training(cfg, trainer, resume)
    return run


def evaluate(config: Path) -> dict[str, float]:
    """Do what `axolotl evaluate` does, in this process. Returns the metrics of both sets."""
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.evaluate import evaluate

    cfg = load_cfg(str(config))
    metrics: dict[str, float] = evaluate(cfg=cfg, dataset_meta=load_datasets(cfg=cfg, cli_args=TrainerCliArgs()))
    return metrics


def by_hand(model: Any, inputs: dict[str, Any]) -> tuple[float, int, float]:
    """Sum of the float64 losses, number of targets, and the router's loss of one micro-batch.

    In train mode and with a graph: 4-bit layers have another kernel for inference.
    """
    model.train()
    # What dropout and NEFTune draw here, they draw again in the step.
    with torch.random.fork_rng(devices=[]):
        output = model(**{key: value for key, value in inputs.items() if key != "labels"})
    losses = oracle.token_losses(output.logits[:, :-1], inputs["labels"][:, 1:]).detach()
    router = output.get("aux_loss")
    # 0.5 is the coefficient of support.tiny.mixtral.
    return losses.sum().item(), losses.numel(), 0.0 if router is None else 0.5 * router.item()


def command(home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment (`axolotl`, `dft`) in a folder."""
    bin_folder = str(Path(sys.executable).parent)
    plugins = str(Path(__file__).parents[2] / "hosts" / "axolotl" / "plugins")
    return subprocess.run(
        words,
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            **ENVIRONMENT,
            "PATH": bin_folder + os.pathsep + os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(filter(None, [plugins, os.environ.get("PYTHONPATH")])),
            **environment,
        },
    )


def history(home: Path, out: str, step: int) -> list[dict[str, float]]:
    """The training log that a run has saved."""
    state = json.loads((home / out / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry]


def assert_same(
    home: Path, done: subprocess.CompletedProcess[str], expected: Run, out: str = "out/config.yml"
) -> None:
    """Assert that a command of `SAVED` said that the loss is on, logged what a run did, and saved its weights."""
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("dft: loss") == 1, "one start-up line"
    assert ON in done.stderr
    logs = history(home, out, 2)
    for mine, theirs in zip(logs, expected.logs, strict=True):
        for key in ("loss", "dft/nll", "dft/tokens", "ppl"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5), key
    weights = load_file(home / out / "checkpoint-2" / "model.safetensors")
    assert tiny.max_gap(weights, expected.weights) < 1e-6
