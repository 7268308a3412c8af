"""A tiny model that sees, its processor, and chats about pictures, for ms-swift."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from support import swift_runs, tiny

SIDE, PATCH, IMAGE = 16, 8, "<image>"


def make(home: Path) -> dict[str, Any]:
    """Write model, pictures and chats; return the keys of a YAML that name them."""
    words = swift_runs.tokenizer()
    words.add_special_tokens({"extra_special_tokens": [*swift_runs.CHAT, IMAGE]})
    size = {"shortest_edge": SIDE}, {"height": SIDE, "width": SIDE}
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size=size[0], crop_size=size[1]),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        num_additional_image_tokens=1,
    ).save_pretrained(home / "llava")
    model(len(words), words.convert_tokens_to_ids(IMAGE)).save_pretrained(home / "llava")
    chats = []
    for number, chat in enumerate(swift_runs.plain_rows(16, seed=4)):
        picture = home / f"{number}.png"
        Image.new("RGB", (SIDE, SIDE), (number * 9, 90, 255 - number * 7)).save(picture)
        asked, answered = chat["messages"]
        asked["content"] = IMAGE + asked["content"]
        chats.append({"messages": [asked, answered], "images": [str(picture)]})
    (home / "seen.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    kind = "llava1_5_hf"
    return {"model": "llava", "model_type": kind, "template": kind, "dataset": [str(home / "seen.jsonl")]}


def model(vocab: int, image: int) -> LlavaForConditionalGeneration:
    """Two layers of each half."""
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=16,
    )
    text = LlamaConfig(**{**tiny.SHAPE, "vocab_size": vocab})
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=image, vision_feature_layer=-1)
    )
