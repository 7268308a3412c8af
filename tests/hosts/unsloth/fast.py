"""Models as Unsloth's FastLanguageModel loads them on its CPU backend, in TRL's SFTTrainer as it leaves that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support import tiny, training
from unsloth import FastLanguageModel

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def folder(out: Path, **changes: Any) -> Path:
    """Write a tiny model with its tokenizer."""
    if not (out / "model").exists():
        tiny.llama(**changes).save_pretrained(out / "model")
        training.tokenizer().save_pretrained(out / "model")
    return out / "model"


def load(out: Path, *, full: bool = False, bits: int = 16, **changes: Any) -> Any:
    """Load it as Unsloth does."""
    model, _ = FastLanguageModel.from_pretrained(
        str(folder(out, **changes)),
        dtype=torch.float32,
        load_in_4bit=bits == 4,
        full_finetuning=full,
        local_files_only=True,
    )
    return model


def adapted(model: Any) -> Any:
    """Put LoRA on it as Unsloth does; B is not zero, so that the first step moves A as well."""
    model = FastLanguageModel.get_peft_model(model, r=4, lora_alpha=8, lora_dropout=0, target_modules=TARGETS)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def full(out: Path, **changes: Any) -> Any:
    return training.sft_trainer(out, load(out, full=True), **changes)


def lora(out: Path, **changes: Any) -> Any:
    return training.sft_trainer(out, adapted(load(out)), **changes)


def qlora(out: Path, **changes: Any) -> Any:
    made = training.sft_trainer(out, adapted(load(out, bits=4, hidden_size=64)), **changes)
    for name, parameter in made.model.named_parameters():
        if "lora_" in name:
            # TRL casts the adapters of a quantised model to bfloat16, whose rounding would hide a gap.
            parameter.data = parameter.data.float()
    return made


KINDS = {"full": full, "lora": lora, "qlora": qlora}
