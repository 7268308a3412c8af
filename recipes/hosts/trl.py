"""A recipe in TRL's YAML."""

from __future__ import annotations

import os
from typing import Any

from recipes.recipe import Recipe

SUFFIX = ".yaml"
SEES = False


def config(recipe: Recipe) -> dict[str, Any]:
    """Return TRL's keys.

    FSDP 2 takes weights that are trained to float32, whatever they were read as; copies of bfloat16 stay that.
    """
    setting = recipe.setting
    template = (
        {"chat_template_path": recipe.template_copy or os.path.relpath(recipe.template)} if recipe.template else {}
    )
    launch = (
        {"accelerate_config": "multi_gpu" if recipe.lora or recipe.bf16_weights else "fsdp2"}
        if recipe.gpus > 1
        else {}
    )
    return {
        "loss": recipe.loss,
        **launch,
        **({"num_processes": recipe.gpus} if recipe.gpus > 1 else {}),
        "model_name_or_path": recipe.model_path,
        "dtype": "bfloat16" if recipe.bf16_weights or recipe.lora else "float32",
        "attn_implementation": "sdpa",
        "dataset_name": recipe.folder,
        **template,
        "output_dir": recipe.out,
        **(_lora(recipe) if recipe.lora else {}),
        "max_length": setting.length,
        "packing": False,
        "num_train_epochs": setting.epochs,
        "per_device_train_batch_size": recipe.micro,
        "gradient_accumulation_steps": recipe.accumulation,
        "bf16": True,
        "optim": "adamw_torch_fused",
        "adam_beta1": setting.betas[0],
        "adam_beta2": setting.betas[1],
        "weight_decay": setting.weight_decay,
        "max_grad_norm": recipe.clip,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": setting.warmup,
        "seed": recipe.seed,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 50,
        "save_total_limit": 2,
        "report_to": "none",
    }


def _lora(recipe: Recipe) -> dict[str, Any]:
    sizes = recipe.setting.lora
    return {
        "use_peft": True,
        "lora_r": sizes["rank"],
        "lora_alpha": sizes["alpha"],
        "lora_dropout": 0.0,
        "lora_target_modules": "all-linear",
    }


def command(recipe: Recipe, file: str) -> str:
    """Return the line that trains it: accelerate's processes stand in the file."""
    return f"dft train {file}"
