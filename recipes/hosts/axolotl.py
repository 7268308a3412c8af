"""A recipe in Axolotl's YAML."""

from __future__ import annotations

from typing import Any

from recipes.recipe import Recipe

SUFFIX = ".yml"
SEES = False


def config(recipe: Recipe) -> dict[str, Any]:
    """Return Axolotl's keys.

    `bf16: true` reads weights in bfloat16, and its FSDP 2 leaves them so; DeepSpeed keeps a copy in float32 to train.
    """
    setting = recipe.setting
    template = (
        {"chat_template": "jinja", "chat_template_jinja": recipe.template.read_text()} if recipe.template else {}
    )
    return {
        "plugins": ["dft_axolotl.DFTPlugin"],
        "loss": recipe.loss,
        "base_model": recipe.model_path,
        **template,
        "datasets": [
            {
                "path": f"{recipe.folder}/train.jsonl",
                "ds_type": "json",
                "type": "chat_template",
                "field_messages": "messages",
            }
        ],
        "val_set_size": 0.0,
        "output_dir": recipe.out,
        **({"deepspeed": "deepspeed_configs/zero3_bf16.json"} if recipe.sharded and not recipe.bf16_weights else {}),
        **(_fsdp2(recipe) if recipe.sharded and recipe.bf16_weights else {}),
        **(_lora(recipe) if recipe.lora else {}),
        "sequence_len": setting.length,
        "excess_length_strategy": "truncate",
        "sample_packing": False,
        "pad_to_sequence_len": False,
        "num_epochs": setting.epochs,
        "micro_batch_size": recipe.micro,
        "gradient_accumulation_steps": recipe.accumulation,
        "bf16": True,
        "optimizer": "adamw_torch_fused",
        "adam_beta1": setting.betas[0],
        "adam_beta2": setting.betas[1],
        "weight_decay": setting.weight_decay,
        "max_grad_norm": recipe.clip,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler": "cosine",
        "warmup_ratio": setting.warmup,
        "attn_implementation": "flash_attention_2",
        "gradient_checkpointing": True,
        "seed": recipe.seed,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 50,
        "save_total_limit": 2,
    }


def _fsdp2(recipe: Recipe) -> dict[str, Any]:
    return {
        "fsdp_version": 2,
        "fsdp_config": {
            "offload_params": False,
            "cpu_ram_efficient_loading": True,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": recipe.model.layer,
            "state_dict_type": "FULL_STATE_DICT",
            "reshard_after_forward": True,
        },
    }


def _lora(recipe: Recipe) -> dict[str, Any]:
    sizes = recipe.setting.lora
    return {
        "adapter": "lora",
        "lora_r": sizes["rank"],
        "lora_alpha": sizes["alpha"],
        "lora_dropout": 0.0,
        "lora_target_linear": True,
    }


def command(recipe: Recipe, file: str) -> str:
    """Return the line that trains it; DeepSpeed's JSON is fetched by Axolotl."""
    fetch = "axolotl fetch deepspeed_configs && " if "deepspeed" in config(recipe) else ""
    return f"{fetch}axolotl train {file} --launcher torchrun -- --nproc_per_node={recipe.gpus}"
