"""The config that a user would write, in each host's words: the same model, rows, adapter, optimizer and steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evidence.real.training import Length

Tuning = Literal["LoRA", "full"]
Host = Literal["TRL", "Axolotl", "LLaMA-Factory"]

RATES: Mapping[str, float] = {"LoRA": 3e-4, "full": 5e-5}
"""The same for all losses."""

RANK, ALPHA, LONGEST = 16, 32, 512


@dataclass(frozen=True)
class Training:
    """What every config says.

    Attributes:
        model: its folder.
        folder: holds `data` and `chat` (see `questions.write`), and gets `out`.
        loss: what stands after `loss:`.
        tuning: adapters, or all of the model.
        length: how long.
        seed: of the adapters and the order of the rows.
    """

    model: Path
    folder: Path
    loss: Any
    tuning: Tuning
    length: Length
    seed: int

    @property
    def shared(self) -> dict[str, Any]:
        """What all three hosts call the same."""
        return {
            "loss": self.loss,
            "output_dir": str(self.folder / "out"),
            "max_steps": self.length.steps,
            "learning_rate": RATES[self.tuning],
            "warmup_steps": self.length.steps // 10,
            "bf16": False,
            "gradient_checkpointing": False,
            "logging_steps": max(1, self.length.steps // 10),
            "save_only_model": True,
            "seed": self.seed,
        }


def _trl(one: Training) -> dict[str, Any]:
    adapter = {"lora_r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "lora_target_modules": "all-linear"}
    return {
        **one.shared,
        "model_name_or_path": str(one.model),
        "dataset_name": str(one.folder / "data"),
        "use_peft": one.tuning == "LoRA",
        **(adapter if one.tuning == "LoRA" else {}),
        "per_device_train_batch_size": one.length.rows,
        "lr_scheduler_type": "linear",
        "logging_first_step": True,
        "report_to": "none",
    }


def _axolotl(one: Training) -> dict[str, Any]:
    adapter = {"adapter": "lora", "lora_r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "lora_target_linear": True}
    # Its fused kernels, on by default where the dropout is 0, need CUDA.
    kernels = {f"lora_{name}_kernel": False for name in ("mlp", "qkv", "o", "embedding")}
    return {
        **one.shared,
        "plugins": ["dft_axolotl.DFTPlugin"],
        "base_model": str(one.model),
        "datasets": [
            {
                "path": str(one.folder / "chat" / "train.jsonl"),
                "ds_type": "json",
                "type": "chat_template",
                "field_messages": "messages",
            }
        ],
        "dataset_prepared_path": str(one.folder / "prepared"),
        "chat_template": "tokenizer_default",
        **({**adapter, **kernels} if one.tuning == "LoRA" else {}),
        "micro_batch_size": one.length.rows,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "sequence_len": LONGEST,
        "optimizer": "adamw_torch",
        "lr_scheduler": "linear",
        "weight_decay": 0.0,
        "fp16": False,
        "tf32": False,
        "flash_attention": False,
    }


def _llamafactory(one: Training) -> dict[str, Any]:
    adapter = {"lora_rank": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "lora_target": "all"}
    return {
        **one.shared,
        "model_name_or_path": str(one.model),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": one.tuning.lower(),
        **(adapter if one.tuning == "LoRA" else {}),
        "dataset": "chat",
        "dataset_dir": str(one.folder / "chat"),
        "template": "smollm2",
        "cutoff_len": LONGEST,
        "per_device_train_batch_size": one.length.rows,
        "lr_scheduler_type": "linear",
        "disable_gradient_checkpointing": True,
        "use_cpu": True,
        "report_to": "none",
    }


CONFIGS: Mapping[Host, Callable[[Training], dict[str, Any]]] = {
    "TRL": _trl,
    "Axolotl": _axolotl,
    "LLaMA-Factory": _llamafactory,
}


def words(host: Host, threads: int) -> list[str]:
    """Return what stands behind the config: accelerate, which starts TRL, gives a process one thread else."""
    return [f"num_cpu_threads_per_process={threads}"] if host == "TRL" else []
