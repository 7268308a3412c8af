"""Trainers on tiny models and tiny data, the same for the plain Trainer and TRL."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments

from support import tiny

ROUNDS_LOSS = transformers.__version__.startswith("4.")


def rows(count: int = 24, seed: int = 0) -> list[dict[str, list[int]]]:
    """Tokenised rows of different lengths, so that micro-batches count different numbers of targets."""
    pick = random.Random(seed)
    made = []
    for _ in range(count):
        prompt, answer = pick.randint(2, 6), pick.randint(1, 14)
        ids = [pick.randint(3, tiny.VOCAB - 1) for _ in range(prompt + answer)]
        made.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return made


def as_text(row: dict[str, list[int]]) -> dict[str, str]:
    """Return a row as TRL takes it; it joins the two texts before it tokenises them, so the second has the space."""
    tokens = list(zip(row["input_ids"], row["labels"], strict=True))
    return {
        "prompt": " ".join(f"w{token}" for token, label in tokens if label == -100),
        "completion": "".join(f" w{token}" for token, label in tokens if label != -100),
    }


def collate(features: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pad on the right; the padding is no target."""
    width = max(len(feature["input_ids"]) for feature in features)

    def pad(key: str, value: int) -> Tensor:
        return torch.tensor([f[key] + [value] * (width - len(f[key])) for f in features])

    mask = [[1] * len(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in features]
    return {
        "input_ids": pad("input_ids", 0),
        "labels": pad("labels", -100),
        "attention_mask": torch.tensor(mask),
    }


def arguments(out: Path, **changes: Any) -> dict[str, Any]:
    """Settings under which a step shows its whole gradient: SGD, a rate of 1, nothing clipped."""
    return {
        "output_dir": str(out),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 1,
        **changes,
    }


def trainer(out: Path, model: PreTrainedModel | None = None, **changes: Any) -> Trainer:
    """A plain Trainer. Keywords are TrainingArguments, but for those of `Trainer` itself."""
    # Where no host is installed, there is none of it, and the rest of this module is used all the same.
    from datasets import Dataset

    own = {key: changes.pop(key) for key in ("compute_metrics", "compute_loss_func") if key in changes}
    return Trainer(
        model=tiny.llama() if model is None else model,
        args=TrainingArguments(**arguments(out, **changes)),
        data_collator=collate,
        train_dataset=Dataset.from_list(rows()),
        eval_dataset=Dataset.from_list(rows(10, seed=1)),
        **own,
    )


def sft_trainer(out: Path, model: PreTrainedModel | None = None, **changes: Any) -> Any:
    """TRL's SFTTrainer on rows that are tokenised already."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    own = {key: changes.pop(key) for key in ("peft_config", "compute_metrics") if key in changes}
    given = rows()
    if changes.get("packing"):
        # TRL packs before it masks; a prompt/completion mask is what survives.
        given = [
            {"input_ids": r["input_ids"], "completion_mask": [int(x != -100) for x in r["labels"]]} for r in given
        ]
    defaults = {"gradient_checkpointing": False, "max_length": 64, "bf16": False, "shuffle_dataset": False}
    return SFTTrainer(
        model=tiny.llama() if model is None else model,
        args=SFTConfig(**arguments(out, **{**defaults, **changes})),
        train_dataset=Dataset.from_list(given),
        eval_dataset=Dataset.from_list(rows(10, seed=1)),
        processing_class=tokenizer(),
        **own,
    )


def tokenizer() -> Any:
    """A tokenizer of whole words, one for each id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, tiny.VOCAB))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def lora_config(**changes: Any) -> LoraConfig:
    """LoRA on all linear layers of the blocks."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    given = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": targets}
    return LoraConfig(task_type="CAUSAL_LM", **{**given, **changes})


def lora(model: PreTrainedModel | None = None, **changes: Any) -> Any:
    """A PEFT model whose B is not zero, so that the first step moves A as well."""
    base = tiny.llama() if model is None else model
    torch.manual_seed(3)
    peft_model = get_peft_model(base, lora_config(**changes))
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return peft_model


def trained(model: Any) -> dict[str, Tensor]:
    """Copies of what trains."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def losses(made: Any) -> list[float]:
    """The logged training losses. transformers 4 rounds `loss` to four digits, so ours stands in for it there."""
    return [entry.get("dft/loss", entry["loss"]) if ROUNDS_LOSS else entry["loss"] for entry in train_logs(made)]


def train_logs(made: Any) -> list[dict[str, float]]:
    return [entry for entry in made.state.log_history if "loss" in entry]
