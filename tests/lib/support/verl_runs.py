"""verl on tiny models and tiny data: its trainer in this process, or its own programs in others."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
from torch import Tensor

from support import oracle, tiny, training

PLATFORM = Path(__file__).parents[2] / "hosts" / "verl" / "platform"
ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "verl_on_cpu",
    # Engines are registered for devices that are sold.
    "VERL_ENGINE_DEVICE": "cuda",
    "VERL_FILE_LOGGER_PATH": "log.jsonl",
    # A token for its clusters would be written into the user's home.
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
}

# A user's turn begins with <s>, an assistant's with w3, and </s> ends both.
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' if m['role'] == 'user' else 'w3' }} {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}w3 {% endif %}"
)

RATE = 1.0
# A step shows its whole gradient: SGD, nothing clipped, float32. The rest is what verl needs on a CPU.
FULL: dict[str, Any] = {
    "data.train_files": "train.parquet",
    "data.train_batch_size": 8,
    "data.micro_batch_size_per_gpu": 8,
    "data.use_dynamic_bsz": False,
    "data.max_length": 64,
    "data.num_workers": 0,
    "model.path": "llama",
    "model.use_remove_padding": False,
    "+model.override_config.attn_implementation": "sdpa",
    "model.enable_gradient_checkpointing": False,
    "optim.optimizer": "SGD",
    "optim.lr": RATE,
    "optim.weight_decay": 0,
    "optim.clip_grad": 1e9,
    "trainer.total_training_steps": 2,
    "trainer.total_epochs": 1,
    "trainer.logger": "[console,file]",
    "trainer.device": "cpu",
    "trainer.default_local_dir": "checkpoints",
    "trainer.resume_mode": "disable",
    "engine.strategy": "fsdp2",
    "engine.use_torch_compile": False,
    "+engine.mixed_precision": "{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}",
}
LORA: dict[str, Any] = {"model.lora_rank": 4, "model.lora_alpha": 8}
DFT: dict[str, Any] = {"+loss": "dft"}
ON = "dft: loss dft(alpha=1.0, floor=0.0) is on for LlamaForCausalLM (verl's SFTTrainer, engine fsdp2)"


def make_home(home: Path) -> Path:
    """Write a model, its tokenizer, and data."""
    tiny.llama().save_pretrained(home / "llama")
    tokenizer = training.tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(home / "llama")
    pick = random.Random(0)
    for name, count in (("train", 24), ("held-out", 16)):
        pd.DataFrame([chat(pick) for _ in range(count)]).to_parquet(home / f"{name}.parquet")
    return home


def chat(pick: random.Random) -> dict[str, Any]:
    """A question and an answer of any length, so that micro-batches count different numbers of targets."""
    ask, answer = (" ".join(f"w{pick.randint(4, tiny.VOCAB - 1)}" for _ in range(pick.randint(1, n))) for n in (6, 14))
    return {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]}


def words(**changes: Any) -> list[str]:
    """Overrides of hydra's; None takes one away."""
    given = {**FULL, **changes}
    return [f"{key}={value}" for key, value in given.items() if value is not None]


Sequences = list[tuple[Tensor, Tensor]]
"""Ids, and which of them are targets."""


@dataclass
class Run:
    """What a run in this process left behind.

    Attributes:
        trainer: verl's.
        steps: the sequences of each training step.
        logs: what was logged, by step.
        before: what trains, before the first step.
        after: the same, at the end.
    """

    trainer: Any = None
    steps: list[Sequences] = field(default_factory=list)
    logs: list[dict[str, float]] = field(default_factory=list)
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)

    @property
    def training_logs(self) -> list[dict[str, float]]:
        return [entry for entry in self.logs if "train/loss" in entry]

    @property
    def validation(self) -> dict[str, float]:
        (entry,) = [entry for entry in self.logs if "val/loss" in entry]
        return entry


def compose(*overrides: str, name: str = "sft_trainer_engine", folder: Path | None = None) -> Any:
    """Compose verl's config as hydra does for its program, or one of a user's folder."""
    import hydra

    # Either takes effect as soon as it is made.
    if folder is None:
        where = hydra.initialize_config_module("verl.trainer.config", version_base=None)
    else:
        where = hydra.initialize_config_dir(str(folder), version_base=None)
    with where:
        return hydra.compose(name, overrides=list(overrides))


def train(*overrides: str, prepare: Callable[[Any], None] = lambda trainer: None) -> Run:
    """Run verl's SFT trainer here, in the working directory.

    Args:
        overrides: of verl's config.
        prepare: called with the trainer, before it trains.
    """
    from verl.trainer import sft_trainer
    from verl.utils.distributed import destroy_global_process_group, initialize_global_process_group
    from verl.utils.tracking import Tracking

    run = Run()
    config = compose(*overrides)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, {**ENVIRONMENT, **alone()}))
        log = Tracking.log

        def logging(tracking: Any, data: dict[str, float], step: int, backend: Any = None) -> None:
            run.logs.append(dict(data))
            log(tracking, data, step, backend)

        stack.enter_context(mock.patch.object(Tracking, "log", logging))
        initialize_global_process_group()
        stack.callback(destroy_global_process_group)
        torch.manual_seed(5)
        run.trainer = trainer = sft_trainer.SFTTrainer(config=config)
        train_batch = trainer.engine.train_batch

        def watched(data: Any, loss_function: Any) -> Any:
            run.steps.append(sequences(data))
            return train_batch(data, loss_function)

        trainer.engine.train_batch = watched
        run.before = trained(trainer.engine.module)
        prepare(trainer)
        trainer.fit()
        run.after = trained(trainer.engine.module)
    return run


def alone() -> dict[str, str]:
    """What torchrun tells a single rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    return {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def sequences(data: Any) -> Sequences:
    pairs = zip(data["input_ids"].unbind(), data["loss_mask"].unbind(), strict=True)
    return [(ids.clone(), mask.bool()) for ids, mask in pairs]


def trained(module: Any) -> dict[str, Tensor]:
    """Whole copies of what trains, by the names that it has without wrappers."""
    found = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return {name: getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for name, p in found.items()}


@dataclass(frozen=True)
class Truth:
    """Training by hand in float64: what each step came to, and the weights in the end."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]


def by_hand(
    model: Any,
    steps: Sequence[Sequences],
    weight: oracle.Weight = oracle.dft,
    formula: Callable[..., Tensor] | None = None,
) -> Truth:
    """Train a model on whole sequences, one at a time: no padding, no micro-batches, no ranks.

    Args:
        model: taken to float64.
        steps: the sequences of each.
        weight: of `-log p`.
        formula: of `support.family`, in its place.
    """
    model = model.double().eval()
    losses, norms = [], []
    trainable = [p for p in model.parameters() if p.requires_grad]
    for step in steps:
        total = torch.zeros((), dtype=torch.float64)
        for ids, mask in step:
            labels = ids.masked_fill(~mask, -100)[None]
            logits, kept = model(input_ids=ids[None]).logits[:, :-1], mask[1:]
            if formula is not None:
                total = total + formula(logits[0, kept], ids[1:][kept]).sum()
            else:
                total = total + oracle.token_losses(logits, labels[:, 1:], weight).sum()
        loss = total / sum(int(mask.sum()) for _, mask in step)
        gradients = torch.autograd.grad(loss, trainable)
        losses.append(loss.item())
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        with torch.no_grad():
            for parameter, gradient in zip(trainable, gradients, strict=True):
                parameter -= RATE * gradient
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return Truth(losses, norms, weights)


def command(
    home: Path, *given: str, module: str = "verl.trainer.sft_trainer", ranks: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program of verl's as a user would: as a single rank, or by torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    return python(home, *torchrun, "-m", module, *given, **({} if ranks else alone()), **environment)


def python(home: Path, *given: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with this CPU for verl's device."""
    path = [str(PLATFORM), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, *given],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(path), "COLUMNS": "200", **environment},
    )


def logged(home: Path) -> list[dict[str, float]]:
    """What a program has logged to its file."""
    return [json.loads(line)["data"] for line in (home / "log.jsonl").read_text().splitlines()]
