"""What a user of Axolotl has on disk: tiny models with their tokenizers and processors, and tiny data."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from support import tiny

WORDS = [f"word{i}" for i in range(60)]
SHAPE: dict[str, Any] = {**tiny.SHAPE, "vocab_size": 160, "hidden_size": 64, "max_position_embeddings": 256}
MAMBA: dict[str, Any] = {"vocab_size": 160, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}
PATCH, PATCHES = 8, 2


def make_folder(home: Path) -> None:
    """Write models, tokenizers and data sets."""
    torch.manual_seed(0)
    made = {
        "llama": tiny.llama(**SHAPE),
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
        "mixtral": tiny.mixtral(**SHAPE),
        "mamba": MambaForCausalLM(MambaConfig(**MAMBA)),
    }
    for name, model in made.items():
        model.save_pretrained(home / "models" / name)
        _tokenizer().save_pretrained(home / "models" / name)
    _make_llava(home / "models" / "llava")
    (home / "data").mkdir()
    pick = random.Random(0)
    pairs = [(_sentence(pick, 2, 8), _sentence(pick, 1, 30)) for _ in range(48)]
    _write(home, "alpaca", [{"instruction": ask, "input": "", "output": answer} for ask, answer in pairs])
    chat = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]}
        for ask, answer in pairs
    ]
    _write(home, "chat", chat)
    _write(home, "text", [{"text": _sentence(pick, 3, 60)} for _ in range(48)])
    seen = []
    for number, row in enumerate(chat[:12]):
        path = home / "data" / f"{number}.png"
        Image.new("RGB", (20, 16), (pick.randrange(256), pick.randrange(256), pick.randrange(256))).save(path)
        seen.append({**row, "images": [str(path)]})
    _write(home, "images", seen)


def _sentence(pick: random.Random, least: int, most: int) -> str:
    return " ".join(pick.choice(WORDS) for _ in range(pick.randint(least, most)))


def _write(home: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    (home / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _make_llava(folder: Path) -> None:
    """A model that sees, and its processor: an image is four patches."""
    tokenizer = _tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<s> {{ m['role'] }} "
        "{% for part in m['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }} {% endfor %}"
        "</s>{% endfor %}"
    )
    size = PATCH * PATCHES
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=size,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**SHAPE),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=PATCHES**2,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    processor.save_pretrained(folder)


def _tokenizer() -> Any:
    known = [
        "<pad>",
        "<s>",
        "</s>",
        "<unk>",
        *WORDS,
        "Below",
        "is",
        "an",
        "instruction",
        "Response",
        "user",
        "assistant",
    ]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.chat_template = (
        "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s>{% endfor %}"
        "{% if add_generation_prompt %}<s> assistant{% endif %}"
    )
    return made
