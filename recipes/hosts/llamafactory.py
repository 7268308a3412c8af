"""A recipe in LLaMA-Factory's YAML."""

from __future__ import annotations

from typing import Any

from recipes.paper import DEEPSEEK, LLAMA, QWEN, QWEN_MATH, QWEN_VL
from recipes.recipe import REASON, Recipe

SUFFIX = ".yaml"
SEES = True

TEMPLATES = {QWEN: "qwen", QWEN_MATH: "qwen", QWEN_VL: "qwen2_vl", LLAMA: "default", DEEPSEEK: "deepseek"}
"""`default` ends an answer with the tokenizer's own end of a sequence; `llama3` with a token of instructed models."""


def config(recipe: Recipe) -> dict[str, Any]:
    """Return LLaMA-Factory's keys; it takes what it trains to float32, but for `pure_bf16`."""
    setting = recipe.setting
    system = {"default_system": REASON} if recipe.model.chat == QWEN_MATH else {}
    return {
        "loss": recipe.loss,
        "model_name_or_path": recipe.model_path,
        "stage": "sft",
        "do_train": True,
        **(_lora(recipe) if recipe.lora else {"finetuning_type": "full"}),
        **(_sharded(recipe) if recipe.sharded else {}),
        "template": TEMPLATES[recipe.model.chat],
        **system,
        "dataset": setting.name,
        "dataset_dir": recipe.folder,
        "output_dir": recipe.out,
        "cutoff_len": setting.length,
        "packing": False,
        "num_train_epochs": setting.epochs,
        "per_device_train_batch_size": recipe.micro,
        "gradient_accumulation_steps": recipe.accumulation,
        **({"pure_bf16": True} if recipe.bf16_weights else {"bf16": True}),
        "optim": "adamw_torch",
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
        "report_to": "none",
    }


def _lora(recipe: Recipe) -> dict[str, Any]:
    sizes = recipe.setting.lora
    return {
        "finetuning_type": "lora",
        "lora_rank": sizes["rank"],
        "lora_alpha": sizes["alpha"],
        "lora_dropout": 0.0,
        "lora_target": "all",
    }


def _sharded(recipe: Recipe) -> dict[str, Any]:
    return {
        "fsdp": "full_shard auto_wrap",
        "fsdp_config": {
            "fsdp_version": 2,
            "reshard_after_forward": True,
            "transformer_layer_cls_to_wrap": [recipe.model.layer],
            "state_dict_type": "FULL_STATE_DICT",
        },
    }


def command(recipe: Recipe, file: str) -> str:
    """Return the line that trains it: LLaMA-Factory is told of ranks by variables."""
    ranks = f"FORCE_TORCHRUN=1 NPROC_PER_NODE={recipe.gpus} " if recipe.gpus > 1 else ""
    return f"{ranks}dft train {file}"
