"""LLaMA-Factory on tiny models and tiny data: a user's folder, runs in this process, runs of its command."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from packaging.version import Version
from torch import Tensor
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from dft_llamafactory.arguments import read
from dft_llamafactory.run import run_with_loss
from support import oracle, tiny, training
from support.ran import Run

OLD = Version(version("llamafactory")) < Version("0.9.5")

ROUNDED = 0.0 if Version(version("transformers")) >= Version("5") else 5.1e-5
"""transformers 4 logs losses with four digits after the point."""

WIDTH = {"hidden_size": 64, "intermediate_size": 96}
"""bitsandbytes quantises blocks of 64 weights."""


def make_home(home: Path) -> Path:
    """Write models, data sets and `dataset_info.json`; LLaMA-Factory is started in this folder."""
    models = {"llama": tiny.llama(**WIDTH), "tied": tiny.llama(tie_word_embeddings=True, **WIDTH), "moe": qwen2_moe()}
    for name, model in models.items():
        model.save_pretrained(home / name)
        training.tokenizer().save_pretrained(home / name)
    (home / "data").mkdir()
    sets = {"plain": plain_rows(), "chat": chat_rows(), "held-out": plain_rows(10, seed=1)}
    for name, rows in sets.items():
        (home / "data" / f"{name}.json").write_text(json.dumps(rows))
    info: dict[str, Any] = {name: {"file_name": f"{name}.json"} for name in sets}
    info["chat"] |= {"formatting": "sharegpt", "columns": {"messages": "conversations"}}
    (home / "data" / "dataset_info.json").write_text(json.dumps(info))
    return home


def qwen2_moe() -> Qwen2MoeForCausalLM:
    """Its router's auxiliary loss is large enough to show in a step."""
    router = {"num_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    sizes = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    torch.manual_seed(0)
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**{**tiny.SHAPE, **router, **sizes}))


def plain_rows(count: int = 40, seed: int = 0) -> list[dict[str, str]]:
    """Rows of different lengths, so that micro-batches count different numbers of targets."""
    pick = random.Random(seed)
    return [
        {"instruction": _words(pick, pick.randint(2, 6)), "input": "", "output": _words(pick, pick.randint(1, 14))}
        for _ in range(count)
    ]


def chat_rows(count: int = 24) -> list[dict[str, Any]]:
    """Conversations of two turns."""
    pick = random.Random(2)
    return [
        {
            "conversations": [
                {"from": who, "value": _words(pick, pick.randint(1, 8))} for who in ("human", "gpt", "human", "gpt")
            ]
        }
        for _ in range(count)
    ]


def _words(pick: random.Random, count: int) -> str:
    return " ".join(f"w{pick.randint(3, tiny.VOCAB - 1)}" for _ in range(count))


def arguments(home: Path, out: Path, model: str = "llama", **changes: Any) -> dict[str, Any]:
    """A config under which a step shows its whole gradient: SGD, a rate of 1, nothing clipped."""
    return {
        "model_name_or_path": str(home / model),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "dataset": "plain",
        "dataset_dir": str(home / "data"),
        "template": "default",
        "cutoff_len": 64,
        "overwrite_cache": True,
        "preprocessing_num_workers": 1,
        "output_dir": str(out),
        "overwrite_output_dir": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 42,
        **changes,
    }


LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all", "lora_dropout": 0.0}


def train(config: dict[str, Any], loss: Any = None, prepare: Callable[[Any], None] = lambda trainer: None) -> Run:
    """Run LLaMA-Factory's `run_exp` here.

    Args:
        config: its arguments.
        loss: what stands after `loss:`; None trains LLaMA-Factory's own.
        prepare: called with the trainer, before the loss is activated.
    """
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
    from llamafactory.train.tuner import run_exp

    run = Run()
    token_losses: list[Tensor] = []
    init, step = CustomSeq2SeqTrainer.__init__, CustomSeq2SeqTrainer.training_step

    def spying_init(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        run.trainer = self
        run.before = training.trained(self.model)
        prepare(self)

    def spying_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 0:
            run.batches.append(dict(inputs))
            token_losses.append(_token_losses(model, inputs))
            run.expected = float(torch.cat(token_losses).mean())
        return step(self, model, inputs, *args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(CustomSeq2SeqTrainer, "__init__", spying_init))
        stack.enter_context(mock.patch.object(CustomSeq2SeqTrainer, "training_step", spying_step))
        if loss is None:
            run_exp(config)
        else:
            run_with_loss(run_exp, read({**config, "loss": loss}))
    return run


def _token_losses(model: Any, inputs: Any) -> Tensor:
    """Losses of all targets of a micro-batch: position t predicts the label of t + 1."""
    model.train()
    # bitsandbytes has another kernel without gradients, so this runs with them.
    logits = model(**{key: value for key, value in inputs.items() if key != "labels"}).logits
    return oracle.token_losses(logits[:, :-1], inputs["labels"][:, 1:]).detach()


def write_config(path: Path, **config: Any) -> Path:
    path.write_text(json.dumps(config, indent="\t") if path.suffix == ".json" else yaml.safe_dump(config))
    return path


def command(
    *words: str, cwd: Path, environment: dict[str, str] | None = None, script: str = "llamafactory-cli"
) -> subprocess.CompletedProcess[str]:
    """Start one of the commands of this environment, as a user would."""
    binaries = Path(sys.executable).parent
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [str(binaries / script), *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **(environment or {})},
        check=False,
    )


LIGER_LAYERS = ("rms_norm", "rope", "swiglu")


def on_liger(script: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Start a command with Liger's kernels interpreted; see `liger_on_cpu`."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    words = ("-m", "support.liger_on_cpu", script, *words)
    return command(*words, cwd=cwd, environment=environment, script="python")


def liger_calls(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """How often each of Liger's functions was called in such a command."""
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("liger: "))
    calls: dict[str, int] = json.loads(line.removeprefix("liger: "))
    return calls


def history(out: Path) -> list[dict[str, float]]:
    """The training logs that a finished run has saved."""
    state = json.loads((out / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry]
