"""One short run in each host, on tiny models and tiny data: the same whether it is straight, spoiled or resumed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reliability.faults import arming, on_verl
from reliability.faults.victim import Harm, Order

Prepare = Callable[[Any], None]
"""Called with the trainer before it trains."""

Ended = dict[str, Any]
"""`logs`, a dict for each step, and `weights`, what was trained, by name."""

STEPS = 6
"""Of a run; each is saved."""

NEEDED = {
    "transformers": "datasets",
    "trl": "trl",
    "axolotl": "axolotl",
    "llamafactory": "llamafactory",
    "swift": "swift",
    "verl": "verl",
    "unsloth": "unsloth",
}
"""By host, what must be installed."""

TESTS = Path(__file__).parents[2] / "tests"
LIBRARIES = (TESTS / "lib", TESTS / "hosts" / "unsloth")
"""The tests' own models, data and ways to run a host."""

_MODULES = {
    "transformers": ("support.training",),
    "trl": ("support.training", "trl.trainer.sft_trainer"),
    "axolotl": ("support.axolotl_folder", "support.training", "axolotl.train", "axolotl.core.builders.causal"),
    "llamafactory": ("support.factory", "support.given", "llamafactory.train.tuner"),
    "swift": ("support.swift_runs", "support.given", "swift.pipelines", "swift.trainers.seq2seq_trainer"),
    "verl": ("support.verl_runs", "verl.trainer.sft_trainer"),
    # It rewrites TRL when it is imported.
    "unsloth": ("unsloth", "support.training", "fast"),
}

SAVES = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
RATE = {"learning_rate": 1e-2, "lr_scheduler_type": "linear"}
OPTIMIZER = {**SAVES, **RATE, "optim": "adamw_torch"}


def installed() -> list[str]:
    """Name the hosts that this environment has. Where it has one of the others, the plain Trainer is left to TRL's."""
    there = [host for host, package in NEEDED.items() if find_spec(package) is not None]
    others = [host for host in there if host not in ("transformers", "trl")]
    return others or there


def load(host: str) -> None:
    """Import a host, in this process, with the environment that its tests set before that."""
    sys.path += [str(one) for one in LIBRARIES if str(one) not in sys.path]
    if host == "axolotl":
        runs = import_module("support.axolotl_runs")
        os.environ.update(runs.ENVIRONMENT)
    elif host == "swift":
        # It imports ms-swift, which reads them then.
        os.environ.update({"USE_HF": "1", "MODELSCOPE_OFFLINE": "1"})
    elif host == "verl":
        runs = import_module("support.verl_runs")
        os.environ.update(runs.ENVIRONMENT)
        sys.path.insert(0, str(runs.PLATFORM))
    elif host == "unsloth":
        os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    for module in (*_MODULES[host], "dft_plugin.hf.activation"):
        import_module(module)


def train(order: Order, harm: Harm | None) -> Ended:
    """Train, and return what came of it.

    Args:
        order: what.
        harm: comes to this process; None: nothing does.
    """
    if order.host == "verl":
        return on_verl.train(order, harm)

    def prepare(trainer: Any) -> None:
        if harm is not None:
            arming.arm(trainer, harm)

    from support import training

    trainer = _RUNS[order.host](order, Path(order.folder), Path(order.out), prepare)
    weights = training.trained(trainer.accelerator.unwrap_model(trainer.model))
    return {"logs": training.train_logs(trainer), "weights": weights}


def _plain(make: str) -> Callable[..., Any]:
    def run(order: Order, folder: Path, out: Path, prepare: Prepare) -> Any:
        from support import tiny, training

        del folder
        model = tiny.llama() if order.kind == "full" else training.lora()
        extra = {"ddp_find_unused_parameters": False}
        jit = {"enable_jit_checkpoint": True} if os.environ.get("DFT_FAULTS_JIT") else {}
        return _activated(getattr(training, make)(out, model, **OPTIMIZER, **extra, **jit), order, prepare)

    return run


def _unsloth(order: Order, folder: Path, out: Path, prepare: Prepare) -> Any:
    fast = import_module("fast")
    from support import training

    model = fast.load(folder, full=True) if order.kind == "full" else fast.adapted(fast.load(folder))
    return _activated(training.sft_trainer(out, model, **OPTIMIZER), order, prepare)


def _activated(trainer: Any, order: Order, prepare: Prepare) -> Any:
    from dft_plugin import activate

    activate(trainer, order.loss)
    prepare(trainer)
    trainer.train(resume_from_checkpoint=order.resume)
    return trainer


def _axolotl(order: Order, folder: Path, out: Path, prepare: Prepare) -> Any:
    from support import axolotl_folder, axolotl_runs

    os.environ.update(axolotl_runs.ENVIRONMENT)
    if not (folder / "models").is_dir():
        axolotl_folder.make_folder(folder)
    os.chdir(folder)
    from axolotl.train import execute_training

    changes = {**(axolotl_runs.LORA if order.kind == "lora" else {}), **SAVES}
    changes |= {"learning_rate": 1e-2, "lr_scheduler": "linear", "optimizer": "adamw_torch"}
    config = axolotl_runs.write_config(folder, f"{out.name}.yml", loss=order.loss, output_dir=str(out), **changes)
    cfg, trainer = axolotl_runs.prepare(config)
    prepare(trainer)
    execute_training(cfg, trainer, order.resume)
    return trainer


def _llamafactory(order: Order, folder: Path, out: Path, prepare: Prepare) -> Any:
    from support import factory

    if not (folder / "llama").is_dir():
        factory.make_home(folder)
    changes = {**(factory.LORA if order.kind == "lora" else {}), **OPTIMIZER, **_resumed(order)}
    return factory.train(factory.arguments(folder, out, **changes), order.loss, _moved(prepare)).trainer


def _swift(order: Order, folder: Path, out: Path, prepare: Prepare) -> Any:
    from support import swift_runs

    os.environ.update(swift_runs.ENVIRONMENT)
    if not (folder / "qwen2").is_dir():
        swift_runs.make_home(folder)
    changes = {**(swift_runs.LORA if order.kind == "lora" else {}), **OPTIMIZER, **_resumed(order)}
    return swift_runs.train(swift_runs.config(folder, out, **changes), order.loss, _moved(prepare)).trainer


def _resumed(order: Order) -> dict[str, str]:
    return {} if order.resume is None else {"resume_from_checkpoint": order.resume}


def _moved(prepare: Prepare) -> Prepare:
    """Have a new adapter be one whose first step moves all of it."""
    from support import given

    def move_and_prepare(trainer: Any) -> None:
        given.move_adapters(trainer.model)
        prepare(trainer)

    return move_and_prepare


_RUNS: Mapping[str, Callable[..., Any]] = {
    "transformers": _plain("trainer"),
    "trl": _plain("sft_trainer"),
    "axolotl": _axolotl,
    "llamafactory": _llamafactory,
    "swift": _swift,
    "unsloth": _unsloth,
}
