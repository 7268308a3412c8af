"""One short run in each host, on tiny models and tiny data: the same whether it is straight, spoiled or resumed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Prepare = Callable[[Any], None]
"""Called with the trainer before it trains."""

STEPS = 6
"""Of a run; each is saved."""

NEEDED = {
    "transformers": "datasets",
    "trl": "trl",
    "axolotl": "axolotl",
    "llamafactory": "llamafactory",
    "swift": "swift",
}
"""By host, what must be installed."""

LIBRARY = Path(__file__).parents[2] / "tests" / "lib"
"""The tests' own models, data and ways to run a host."""

_MODULES = {
    "transformers": ("support.training",),
    "trl": ("support.training", "trl.trainer.sft_trainer"),
    "axolotl": ("support.axolotl_folder", "support.training", "axolotl.train", "axolotl.core.builders.causal"),
    "llamafactory": ("support.factory", "support.given", "llamafactory.train.tuner"),
    "swift": ("support.swift_runs", "support.given", "swift.pipelines", "swift.trainers.seq2seq_trainer"),
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
    if str(LIBRARY) not in sys.path:
        sys.path.insert(0, str(LIBRARY))
    if host == "axolotl":
        runs = import_module("support.axolotl_runs")
        os.environ.update(runs.ENVIRONMENT)
    elif host == "swift":
        # It imports ms-swift, which reads them then.
        os.environ.update({"USE_HF": "1", "MODELSCOPE_OFFLINE": "1"})
    for module in (*_MODULES[host], "dft_plugin.hf.activation"):
        import_module(module)


def train(host: str, kind: str, loss: Any, folder: Path, out: Path, resume: str | None, prepare: Prepare) -> Any:
    """Train, and return the trainer.

    Args:
        host: a key of `NEEDED`.
        kind: `full` or `lora`.
        loss: what stands after `loss:`.
        folder: with models and data, made where it is missing; the working directory of the hosts that want one.
        out: output folder of the run.
        resume: a checkpoint.
        prepare: see `Prepare`.
    """
    return _RUNS[host](kind, loss, folder, out, resume, prepare)


def _plain(make: str) -> Callable[..., Any]:
    def run(kind: str, loss: Any, folder: Path, out: Path, resume: str | None, prepare: Prepare) -> Any:
        from support import tiny, training

        from dft_plugin import activate

        del folder
        model = tiny.llama() if kind == "full" else training.lora()
        extra = {"ddp_find_unused_parameters": False}
        jit = {"enable_jit_checkpoint": True} if os.environ.get("DFT_FAULTS_JIT") else {}
        trainer = getattr(training, make)(out, model, **OPTIMIZER, **extra, **jit)
        activate(trainer, loss)
        prepare(trainer)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def _axolotl(kind: str, loss: Any, folder: Path, out: Path, resume: str | None, prepare: Prepare) -> Any:
    from support import axolotl_folder, axolotl_runs

    os.environ.update(axolotl_runs.ENVIRONMENT)
    if not (folder / "models").is_dir():
        axolotl_folder.make_folder(folder)
    os.chdir(folder)
    from axolotl.train import execute_training

    changes = {**(axolotl_runs.LORA if kind == "lora" else {}), **SAVES}
    changes |= {"learning_rate": 1e-2, "lr_scheduler": "linear", "optimizer": "adamw_torch"}
    config = axolotl_runs.write_config(folder, f"{out.name}.yml", loss=loss, output_dir=str(out), **changes)
    cfg, trainer = axolotl_runs.prepare(config)
    prepare(trainer)
    execute_training(cfg, trainer, resume)
    return trainer


def _llamafactory(kind: str, loss: Any, folder: Path, out: Path, resume: str | None, prepare: Prepare) -> Any:
    from support import factory, given

    if not (folder / "llama").is_dir():
        factory.make_home(folder)
    changes = {**(factory.LORA if kind == "lora" else {}), **OPTIMIZER}
    resumed = {} if resume is None else {"resume_from_checkpoint": resume}

    def move_and_prepare(trainer: Any) -> None:
        given.move_adapters(trainer.model)
        prepare(trainer)

    return factory.train(factory.arguments(folder, out, **changes, **resumed), loss, move_and_prepare).trainer


def _swift(kind: str, loss: Any, folder: Path, out: Path, resume: str | None, prepare: Prepare) -> Any:
    from support import swift_runs

    os.environ.update(swift_runs.ENVIRONMENT)
    from support import given

    if not (folder / "qwen2").is_dir():
        swift_runs.make_home(folder)
    changes = {**(swift_runs.LORA if kind == "lora" else {}), **OPTIMIZER}
    resumed = {} if resume is None else {"resume_from_checkpoint": resume}

    def move_and_prepare(trainer: Any) -> None:
        given.move_adapters(trainer.model)
        prepare(trainer)

    return swift_runs.train(swift_runs.config(folder, out, **changes, **resumed), loss, move_and_prepare).trainer


_RUNS: Mapping[str, Callable[..., Any]] = {
    "transformers": _plain("trainer"),
    "trl": _plain("sft_trainer"),
    "axolotl": _axolotl,
    "llamafactory": _llamafactory,
    "swift": _swift,
}
