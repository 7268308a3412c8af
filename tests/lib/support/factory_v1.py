"""LLaMA-Factory's v1 trainer on tiny models and tiny data: configs, data with weights, runs in this process."""

from __future__ import annotations

import copy
import json
import os
import random
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from torch import Tensor

from dft_llamafactory import run_v1
from dft_llamafactory.arguments import read
from support import factory, oracle, tiny, training

WARNS = [
    # torchdata 0.11 beside a newer torch, and v1's pinned memory where there is no accelerator.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:pin_memory_device is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning"),
]

LORA = {"peft_config": {"name": "lora", "r": 4, "lora_dropout": 0.0}}

ON = "dft: loss dft(alpha=1.0, floor=0.0) is on for LlamaForCausalLM (v1 SFTTrainer)"

ON_A_CPU = "import torch\ntorch.accelerator.synchronize = lambda *_: None\n"
"""v1 waits for the accelerator after each step if there are several ranks; without one, PyTorch raises there."""


def make_data(home: Path) -> None:
    """Write v1's data sets beside those of `factory.make_home`."""
    sets = {"weights": weighted_rows(), "fractional": weighted_rows(lowest=0.5)}
    for name, rows in sets.items():
        (home / "data" / f"{name}.json").write_text(json.dumps(rows))
    plain = {"path": str(home / "data" / "plain.json"), "source": "local", "converter": "alpaca"}
    (home / "data" / "v1-plain.yaml").write_text(yaml.safe_dump({"plain": plain}))


def weighted_rows(count: int = 24, lowest: float = 0.0) -> list[dict[str, Any]]:
    """Conversations in v1's own format: rows that open with a target, and rows that have none."""
    pick = random.Random(3)

    def message(role: str, weight: float) -> dict[str, Any]:
        text = " ".join(f"w{pick.randint(3, tiny.VOCAB - 1)}" for _ in range(pick.randint(1, 9)))
        return {"role": role, "content": [{"type": "text", "value": text}], "loss_weight": weight}

    rows = []
    for index in range(count):
        opening, answer = (1.0, lowest) if index % 2 else (0.0, 1.0)
        if index % 3 == 0:
            opening = answer = 0.0
        rows.append({"messages": [message("assistant", opening), message("user", 0.0), message("assistant", answer)]})
    return rows


def arguments(
    home: Path, out: Path, model: str = "llama", data: str = "v1-plain.yaml", **changes: Any
) -> dict[str, Any]:
    """A config under which a step shows its whole gradient: SGD, a rate of 1, nothing clipped."""
    return {**command_arguments(home, out, model, data), "optim_config": {"name": "sgd", "lr": 1.0}, **changes}


def command_arguments(
    home: Path, out: Path, model: str = "llama", data: str = "v1-plain.yaml", **changes: Any
) -> dict[str, Any]:
    """The same with AdamW, the only optimizer that v1 comes with."""
    return {
        "model": str(home / model),
        "template": "chatml",
        "train_dataset": str(home / "data" / data),
        "output_dir": str(out),
        "micro_batch_size": 4,
        "global_batch_size": 4,
        "cutoff_len": 64,
        "learning_rate": 1e-4,
        "max_steps": 2,
        "max_grad_norm": 1e9,
        "bf16": False,
        "batching_workers": 0,
        **changes,
    }


@dataclass
class Run:
    """What a run in this process left behind.

    Attributes:
        trainer: v1's.
        before: copies of what trains, before the first step.
        batches: every micro-batch of the first step, as v1 made it.
        expected: loss of the first step in float64, from the model's own logits.
        stepped: weights after one step of SGD with a rate of 1, in float64.
    """

    trainer: Any = None
    before: dict[str, Tensor] = field(default_factory=dict)
    batches: list[dict[str, Tensor]] = field(default_factory=list)
    expected: float = float("nan")
    stepped: dict[str, Tensor] = field(default_factory=dict)

    @property
    def after(self) -> dict[str, Tensor]:
        return training.trained(self.trainer.model)

    @property
    def logs(self) -> list[dict[str, float]]:
        return self.trainer.state.log_history

    @property
    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.logs]

    @property
    def moved(self) -> float:
        return tiny.max_gap(self.before, self.after)

    @property
    def targets(self) -> int:
        """Targets of the first step that some position predicts."""
        return sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in self.batches)


def train(config: dict[str, Any], loss: Any = None) -> Run:
    """Run v1's `run_sft` here; `loss` is what stands after `loss:`, and None trains v1's own."""
    from llamafactory.v1.core.base_trainer import BaseTrainer
    from llamafactory.v1.core.utils.batching import BatchGenerator
    from llamafactory.v1.trainers.sft_trainer import run_sft

    run = Run()
    init, draw = BaseTrainer.__init__, BatchGenerator.__next__

    def spying_init(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        run.trainer, run.before = self, training.trained(self.model)

    def spying_draw(self: Any) -> Any:
        micro_batches = draw(self)
        if not run.batches:
            run.batches = [{key: batch[key] for key in INPUTS} for batch in micro_batches]
            _by_hand(run)
        return micro_batches

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(BaseTrainer, "__init__", spying_init))
        stack.enter_context(mock.patch.object(BatchGenerator, "__next__", spying_draw))
        _offer_sgd()
        if loss is None:
            run_sft(config)
        else:
            run_v1.run_with_loss(run_sft, read({**config, "loss": loss}))
    return run


INPUTS = ("input_ids", "attention_mask", "position_ids", "labels")


def _by_hand(run: Run) -> None:
    """Sum of the targets' losses over their number, and of each micro-batch's router loss by its share of them."""
    model = copy.deepcopy(run.trainer.model).double()
    if hasattr(model.config, "num_experts"):
        # The other way through them takes no float64.
        model.set_experts_implementation("eager")
    loss = torch.zeros((), dtype=torch.float64)
    for batch in run.batches:
        output = model(**{key: batch[key] for key in INPUTS[:-1]})
        labels = batch["labels"][:, 1:]
        loss = loss + oracle.token_losses(output.logits[:, :-1], labels).sum() / run.targets
        if output.get("aux_loss") is not None:
            share = int((labels != -100).sum()) / run.targets
            loss = loss + share * model.config.router_aux_loss_coef * output.aux_loss
    loss.backward()
    gradients = tiny.gradients(model)
    run.expected = float(loss.detach())
    run.stepped = {name: value.double() - gradients.get(name, 0) for name, value in run.before.items()}


def _offer_sgd() -> None:
    """Register an optimizer as v1 lets its users do."""
    from llamafactory.v1.plugins.trainer_plugins.optimizer import OptimizerPlugin

    def sgd(model: Any, config: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=config["lr"])

    if not OptimizerPlugin._registry["sgd"]:
        OptimizerPlugin("sgd").register()(sgd)


def history(out: Path) -> list[dict[str, float]]:
    """What v1 has written into its log."""
    return [json.loads(line) for line in (out / "trainer_log.jsonl").read_text().splitlines()]


def two_ranks(folder: Path) -> dict[str, str]:
    """The environment in which v1 trains on two ranks without an accelerator."""
    (folder / "sitecustomize.py").write_text(ON_A_CPU)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "PYTHONPATH": path}


def make_home(home: Path) -> Path:
    """Write models and both kinds of data sets."""
    factory.make_home(home)
    make_data(home)
    moe = factory.qwen2_moe()
    # The words of chatml are unknown here, which makes them id 0; embedded as zeros, all experts tie for them.
    torch.nn.init.normal_(moe.get_input_embeddings().weight[0].detach(), std=0.2)
    moe.save_pretrained(home / "moe")
    return home
