"""What a real model replies, with the adapter that was trained or as it was saved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.sums import final_number
from evidence.real.questions import Question


def load(model: Path, trained: Path | None) -> tuple[Any, Any]:
    """Return model and tokenizer.

    Args:
        model: the folder of the base.
        trained: a checkpoint: an adapter of it, or a whole model; None: the base itself.
    """
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    if trained is not None and (trained / "adapter_config.json").exists():
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        return PeftModel.from_pretrained(base, str(trained)).merge_and_unload().eval(), tokenizer
    return AutoModelForCausalLM.from_pretrained(trained or model, dtype=torch.float32).eval(), tokenizer


@torch.inference_mode()
def reply(
    model: Any, tokenizer: Any, questions: Sequence[Question], temperature: float, tokens: int, seed: int
) -> list[str]:
    """Return a reply to each question; temperature 0 takes the likeliest tokens."""
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    said: list[str] = []
    for begin in range(0, len(questions), 50):
        inputs = tokenizer.apply_chat_template(
            [[{"role": "user", "content": one.text}] for one in questions[begin : begin + 50]],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = model.generate(**inputs, **{"do_sample": False, **sampling}, max_new_tokens=tokens)
        said += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


def accuracy(
    model: Any, tokenizer: Any, questions: Sequence[Question], temperature: float, tokens: int, seed: int
) -> float:
    """Return the share of questions whose reply ends in the right number."""
    said = reply(model, tokenizer, questions, temperature, tokens, seed)
    right = sum(final_number(one) == asked.truth for one, asked in zip(said, questions, strict=True))
    return round(right / len(questions), 4)


def checkpoint(folder: Path) -> Path:
    """Return the last checkpoint in a folder."""
    found = folder.glob("checkpoint-*")
    return max(found, key=lambda path: int(re.sub(r"\D", "", path.name)))
