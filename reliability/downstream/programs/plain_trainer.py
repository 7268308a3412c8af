"""transformers' Trainer as a user writes it: nothing of ours in it. `python plain_trainer.py train.yaml`."""

import json
import sys
from pathlib import Path

import torch
import yaml
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)


def main(path: str) -> None:
    """Train what a YAML says."""
    given = yaml.safe_load(Path(path).read_text())
    lora = given.pop("lora", None)
    model = AutoModelForCausalLM.from_pretrained(given.pop("model"))
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
    tokenizer = AutoTokenizer.from_pretrained(given.pop("tokenizer"))
    rows = [json.loads(line) for line in Path(given.pop("data")).read_text().splitlines()]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**given),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        train_dataset=Dataset.from_list(rows),
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()


main(sys.argv[1])
