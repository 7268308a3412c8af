"""Answers from a model, in batches, scored by reasoning-gym itself."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from reasoning_gym.dataset import ProceduralDataset
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from demo.sums import final_number
from demo.tasks import Item


def load(model_dir: Path, adapter_dir: Path | None = None) -> PreTrainedModel:
    """Load the model, with an adapter merged into it if one is given."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    if adapter_dir is not None:
        model = PeftModel.from_pretrained(model, adapter_dir).merge_and_unload()
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def load_tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer, padding on the left, where generation wants it."""
    return AutoTokenizer.from_pretrained(model_dir, padding_side="left")


@torch.inference_mode()
def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: ProceduralDataset,
    items: list[Item],
    title: str,
    temperature: float = 0.0,
    batch_size: int = 50,
    max_new_tokens: int = 48,
) -> float:
    """Return the share of items whose reply ends in the number that the data set accepts.

    At temperature 0 the likeliest token is taken, else all are sampled.
    """
    right = 0
    torch.manual_seed(0)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    starts = range(0, len(items), batch_size)
    for start in track(starts, description=title, total=len(starts)):
        batch = items[start : start + batch_size]
        chats = [[{"role": "user", "content": item["question"]}] for item in batch]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, **sampling)
        replies = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for item, reply in zip(batch, replies, strict=True):
            right += dataset.score_answer(final_number(reply), item) == 1.0
    return right / len(items)
