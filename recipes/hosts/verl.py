"""A recipe in verl's YAML, which hydra lays over verl's own."""

from __future__ import annotations

from typing import Any

from recipes.recipe import Recipe

SUFFIX = ".yaml"
SEES = False


def config(recipe: Recipe) -> dict[str, Any]:
    """Return verl's keys; weights are float32 and passes bfloat16, unless it is told otherwise."""
    setting = recipe.setting
    template = {"custom_chat_template": recipe.template.read_text()} if recipe.template else {}
    lora = {"lora_rank": setting.lora["rank"], "lora_alpha": setting.lora["alpha"], "target_modules": "all-linear"}
    return {
        "defaults": ["sft_trainer_engine", "_self_"],
        "hydra": {"searchpath": ["pkg://verl.trainer.config"]},
        "loss": recipe.loss,
        "model": {
            "path": recipe.model_path,
            "use_remove_padding": True,
            **template,
            **(lora if recipe.lora else {}),
        },
        "data": {
            "train_files": f"{recipe.folder}/train.parquet",
            "train_batch_size": setting.batch,
            "use_dynamic_bsz": False,
            "micro_batch_size_per_gpu": recipe.micro,
            "max_length": setting.length,
            "truncation": "right",
        },
        "optim": {
            "lr": recipe.learning_rate,
            "betas": list(setting.betas),
            "weight_decay": setting.weight_decay,
            "clip_grad": recipe.clip,
            "lr_scheduler_type": "cosine",
            "lr_warmup_steps_ratio": setting.warmup,
        },
        "engine": {
            "strategy": "fsdp2",
            "model_dtype": "bf16" if recipe.bf16_weights else "fp32",
        },
        # In the form of the hub, too, which is what an evaluation reads.
        "checkpoint": {"save_contents": ["model", "optimizer", "extra", "hf_model"]},
        "trainer": {
            "n_gpus_per_node": recipe.gpus,
            "total_epochs": setting.epochs,
            "seed": recipe.seed,
            "save_freq": 50,
            "max_ckpt_to_keep": 2,
            "logger": ["console"],
            "default_local_dir": recipe.out,
            "project_name": "dft-recipes",
            "experiment_name": recipe.name,
        },
    }


def command(recipe: Recipe, file: str) -> str:
    """Return the line that trains it; ranks stand in the file."""
    return f"dft train {file}"
