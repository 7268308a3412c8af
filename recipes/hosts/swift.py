"""A recipe in ms-swift's YAML."""

from __future__ import annotations

from typing import Any

from recipes.paper import DEEPSEEK, LLAMA, QWEN, QWEN_MATH, QWEN_VL
from recipes.recipe import Recipe

SUFFIX = ".yaml"
SEES = True

TEMPLATES = {QWEN: "qwen2_5", QWEN_MATH: "qwen2_5_math", QWEN_VL: "qwen2_5_vl", LLAMA: "default", DEEPSEEK: "deepseek"}
"""As in LLaMA-Factory."""


def config(recipe: Recipe) -> dict[str, Any]:
    """Return ms-swift's keys.

    Float32 has to be asked for, and then bfloat16 for the passes: it would take float16.
    """
    setting = recipe.setting
    half = recipe.bf16_weights or recipe.lora
    dtype = {"torch_dtype": "bfloat16"} if half else {"torch_dtype": "float32", "bf16": True, "fp16": False}
    seeing = {"freeze_vit": True, "freeze_aligner": True} if recipe.setting.name == "multimodal" else {}
    return {
        "loss": recipe.loss,
        **({"ENV": {"NPROC_PER_NODE": recipe.gpus}} if recipe.gpus > 1 else {}),
        "model": recipe.model_path,
        "use_hf": True,
        "template": TEMPLATES[recipe.model.chat],
        **(_lora(recipe) if recipe.lora else {"tuner_type": "full"}),
        **seeing,
        **dtype,
        **({"fsdp": "fsdp2"} if recipe.sharded and not recipe.bf16_weights else {}),
        "dataset": [f"{recipe.folder}/train.jsonl"],
        "output_dir": recipe.out,
        "max_length": setting.length,
        # Its default leaves out what is longer.
        "truncation_strategy": "right",
        "packing": False,
        "num_train_epochs": setting.epochs,
        "per_device_train_batch_size": recipe.micro,
        "gradient_accumulation_steps": recipe.accumulation,
        "optim": "adamw_torch_fused",
        "adam_beta1": setting.betas[0],
        "adam_beta2": setting.betas[1],
        "weight_decay": setting.weight_decay,
        "max_grad_norm": recipe.clip,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": setting.warmup,
        "seed": recipe.seed,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 50,
        "save_total_limit": 2,
        "report_to": ["none"],
    }


def _lora(recipe: Recipe) -> dict[str, Any]:
    sizes = recipe.setting.lora
    return {
        "tuner_type": "lora",
        "lora_rank": sizes["rank"],
        "lora_alpha": sizes["alpha"],
        "lora_dropout": 0.0,
        "target_modules": ["all-linear"],
    }


def command(recipe: Recipe, file: str) -> str:
    """Return the line that trains it; ranks stand in the file."""
    return f"dft train {file}"
