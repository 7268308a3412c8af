"""What a user of a host has on disk, and the words that train it.

`python -m reliability.downstream.folders HOST FORM FOLDER`.

It runs in an environment that has dft-plugin, and uses what the host's tests use. What it starts has nothing of ours.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
sys.path.insert(0, str(ROOT / "tests" / "lib"))

from support import tiny, training  # noqa: E402

Words = tuple[list[str], dict[str, str]]
"""A command, and variables of its environment."""

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj", "up_proj"]}
SHARED: dict[str, Any] = {
    "output_dir": "out",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 4,
    "learning_rate": 0.01,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "save_strategy": "no",
    "seed": 1,
}
"""Adam, dropout in LoRA, shuffled rows, accumulation: what a user's own run has."""


def _rows(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in training.rows(48)))


def _model(home: Path) -> None:
    tiny.llama().save_pretrained(home / "model")
    training.tokenizer().save_pretrained(home / "model")


def _yaml(home: Path, **given: Any) -> str:
    (home / "train.yaml").write_text(yaml.safe_dump(given))
    return "train.yaml"


def transformers(home: Path, form: str) -> Words:
    """The plain Trainer, in a script."""
    _model(home)
    _rows(home / "rows.jsonl")
    more = {"lora": LORA} if form == "lora" else {}
    given = _yaml(home, model="model", tokenizer="model", data="rows.jsonl", **SHARED, **more)
    return ["python", str(PROGRAMS / "plain_trainer.py"), given], {}


def trl(home: Path, form: str) -> Words:
    """`trl sft`."""
    from support import trl_runs

    trl_runs.make_folder(home)
    more = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.1} if form == "lora" else {}
    more |= {"model_name_or_path": "model", "dataset_name": "data", "bf16": False, "dtype": "float32"}
    more |= {"save_strategy": "steps", "save_steps": 4}
    return ["trl", "sft", "--config", _yaml(home, **{**SHARED, **more})], {}


def axolotl(home: Path, form: str) -> Words:
    """`axolotl train`."""
    from support import axolotl_folder, axolotl_runs

    axolotl_folder.make_folder(home)
    more = {
        **axolotl_runs.SAVED,
        "output_dir": "out",
        "dataset_prepared_path": "prepared",
        "shuffle_merged_datasets": True,
    }
    more |= {"max_steps": 4, "save_steps": 4, "gradient_accumulation_steps": 2, "learning_rate": 0.01}
    more |= {"optimizer": "adamw_torch"}
    if form == "lora":
        # Axolotl draws those of a new adapter before it sets a seed.
        _adapter(home / "models" / "llama", home / "adapter")
        more |= {**axolotl_runs.LORA, "lora_dropout": 0.1, "lora_model_dir": "adapter"}
    kept = {key: value for key, value in axolotl_runs.FULL.items() if key not in ("plugins", "loss")}
    return ["axolotl", "train", _yaml(home, **{**kept, **more})], axolotl_runs.ENVIRONMENT


def _adapter(model: Path, folder: Path, **changes: Any) -> None:
    """Write an adapter to go on from; `changes` to what PEFT is told of it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(0)
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **{**LORA, **changes})).save_pretrained(folder)


def llamafactory(home: Path, form: str) -> Words:
    """`llamafactory-cli train`."""
    from support import factory

    factory.make_home(home)
    given = factory.arguments(
        home, home / "out", **{key: value for key, value in SHARED.items() if key != "output_dir"}
    )
    given |= {"optim": "adamw_torch", **({**factory.LORA, "lora_dropout": 0.1} if form == "lora" else {})}
    return ["llamafactory-cli", "train", _yaml(home, **given)], {"DISABLE_VERSION_CHECK": "1"}


def swift(home: Path, form: str) -> Words:
    """`swift sft`."""
    from support import swift_runs

    swift_runs.make_home(home)
    changes = {key: value for key, value in SHARED.items() if key not in ("output_dir", "report_to")}
    changes |= {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 4}
    changes |= {**swift_runs.LORA, "lora_dropout": 0.1} if form == "lora" else {}
    given = swift_runs.config(home, home / "out", **changes)
    return ["swift", "sft", _yaml(home, **given)], swift_runs.ENVIRONMENT


def verl(home: Path, form: str) -> Words:
    """`python -m verl.trainer.sft_trainer`, a single rank, on a platform of verl's that is a CPU."""
    from support import verl_runs

    verl_runs.make_home(home)
    changes = {"trainer.total_training_steps": 2, "trainer.save_freq": 2, "optim.optimizer": "AdamW", "optim.lr": 0.01}
    if form == "lora":
        # verl seeds nothing where its engine draws those of a new adapter, or what dropout leaves out.
        _adapter(home / "llama", home / "adapter", lora_dropout=0.0)
        changes |= {**verl_runs.LORA, "model.lora_adapter_path": "adapter"}
    variables = {**verl_runs.ENVIRONMENT, **verl_runs.alone(), "PYTHONPATH": str(verl_runs.PLATFORM)}
    return ["python", "-m", "verl.trainer.sft_trainer", *verl_runs.words(**changes)], variables


def unsloth(home: Path, form: str) -> Words:
    """Unsloth's model in TRL's SFTTrainer, in a script."""
    _model(home)
    _rows(home / "rows.jsonl")
    more = {"lora": {**LORA, "lora_dropout": 0}} if form == "lora" else {}
    more |= {"bf16": False, "fp16": False, "max_length": 64}
    return [
        "python",
        str(PROGRAMS / "unsloth_trainer.py"),
        _yaml(home, model="model", data="rows.jsonl", **SHARED, **more),
    ], {}


HOSTS: dict[str, Callable[[Path, str], Words]] = {
    "transformers": transformers,
    "trl": trl,
    "axolotl": axolotl,
    "llamafactory": llamafactory,
    "swift": swift,
    "verl": verl,
    "unsloth": unsloth,
    "axolotl021": axolotl,
}
FORMS = ("full", "lora")


def main(host: str, form: str, home: str) -> None:
    """Write the folder, and print the words as JSON on the last line."""
    words, variables = HOSTS[host](Path(home), form)
    print(json.dumps({"words": words, "variables": variables}))


if __name__ == "__main__":
    main(*sys.argv[1:])
