"""A notebook of Unsloth's as a program: nothing of ours in it. `python unsloth_trainer.py train.yaml`."""

import json
import sys
from pathlib import Path

import torch
import unsloth  # noqa: F401  It wants to be first.
import yaml
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel


def main(path: str) -> None:
    """Train what a YAML says."""
    given = yaml.safe_load(Path(path).read_text())
    lora = given.pop("lora", None)
    model, tokenizer = FastLanguageModel.from_pretrained(
        given.pop("model"),
        dtype=torch.float32,
        load_in_4bit=False,
        full_finetuning=lora is None,
        local_files_only=True,
    )
    if lora is not None:
        torch.manual_seed(0)
        model = FastLanguageModel.get_peft_model(model, **lora)
    rows = [json.loads(line) for line in Path(given.pop("data")).read_text().splitlines()]
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=SFTConfig(**given),
        train_dataset=Dataset.from_list(rows),
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()


main(sys.argv[1])
