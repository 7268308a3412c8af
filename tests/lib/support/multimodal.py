"""Every class of transformers that sees or hears and writes, and a batch for each of them.

Nothing here is picked by class: what a forward is called with follows from the names of its arguments, and how
many placeholders a picture or a sound needs is what the model says when their number is wrong.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from support.shrinking import HEADS, TOKENS, VOCAB, WIDTH

_LISTS = ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "VISION_2_SEQ", "SPEECH_SEQ_2_SEQ", "SEQ_TO_SEQ_CAUSAL_LM")

Inputs = dict[str, Any]


def class_names() -> list[str]:
    """Names of the classes in transformers' lists, and of all others that end as theirs do; nothing is imported."""
    listed = {
        name for task in _LISTS for name in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {}).values()
    }
    exported = {
        name
        for name in dir(transformers)
        if re.search(r"(?<!PreTrainedModel)ForConditionalGeneration$", name) and not name.startswith(("TF", "Flax"))
    }
    return sorted(listed | exported)


def classes(name: str) -> tuple[type[PretrainedConfig], type[PreTrainedModel]]:
    model_class = getattr(transformers, name)
    return model_class.config_class, model_class


def text(length: int = 12) -> Inputs:
    """Two rows, one of them padded; the first position of the padding carries a label."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(4, VOCAB - 16, (2, length), generator=generator)
    labels = input_ids.clone()
    labels[:, :3] = -100
    labels[1, -2:] = -100
    mask = torch.ones_like(input_ids)
    mask[1, -3:] = 0
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def batches(model: PreTrainedModel) -> Iterator[tuple[str, Inputs]]:
    """Yield batches to try in turn, the richest first: what is in them, and the batch."""
    asked = inspect.signature(type(model).forward).parameters
    for what, candidates in (("image", _pictures(model, asked)), ("audio", _sounds(model, asked))):
        for given in candidates:
            for batch in _with_placeholders(model, asked, what, given):
                yield what, batch
    yield "text", _completed(asked, {**_marked(0, None), **text()})


def _pictures(model: Any, asked: Any) -> Iterator[Inputs]:
    vision = _part(model.config, "vision")
    channels = getattr(vision, "num_channels", getattr(vision, "in_channels", 3))
    side, patch = (_first(getattr(vision, name, size)) for name, size in (("image_size", 16), ("patch_size", 8)))
    flat = channels * patch * patch
    if "image_grid_thw" in asked:
        depth = flat * getattr(vision, "temporal_patch_size", 1)
        for shape in ((32, depth), (32, channels, patch, patch), (1, 32, channels, patch, patch)):
            yield {"pixel_values": torch.randn(shape), **_beside(2)}
    if "spatial_shapes" in asked or "image_position_ids" in asked:
        mask = torch.ones(2, 16, dtype=torch.long)
        yield {"pixel_values": torch.rand(2, 16, flat), "pixel_attention_mask": mask, **_beside(2)}
    if "flattened_patches" in asked:
        yield {"flattened_patches": torch.cat([torch.ones(2, 16, 2), torch.randn(2, 16, flat)], -1)}
    if "pixel_values" in asked:
        square = (channels, side, side)
        for shape in ((2, *square), (2, 1, *square), (2, 2, *square), (2, 3, *square), (2, 1, HEADS, *square)):
            large = torch.randn(2, channels, 1024, 1024) if "high_res_pixel_values" in asked else None
            pixels = {"pixel_values": torch.randn(shape), "high_res_pixel_values": large}
            yield {**pixels, **_beside(2, side)}
            yield {**pixels, **_beside(2, side), "image_sizes": None}


def _beside(images: int, side: int = 32) -> Inputs:
    """What stands beside pictures, one in each row: sizes, grids and masks by the names that forwards give them."""
    return {
        "image_grid_thw": torch.tensor([[1, 4, 4]] * images),
        "image_merge_sizes": torch.tensor([2] * images),
        "spatial_shapes": torch.tensor([[4, 4]] * images),
        "image_position_ids": torch.cartesian_prod(torch.arange(4), torch.arange(4)).expand(images, -1, -1),
        "image_sizes": torch.tensor([[side, side]] * images),
        "aspect_ratio_ids": torch.ones(images, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(images, 1, HEADS, dtype=torch.long),
        "qformer_input_ids": torch.full((images, 3), 7),
    }


def _sounds(model: Any, asked: Any) -> Iterator[Inputs]:
    audio = _part(model.config, "audio", "encoder", "speech")
    mels = next((getattr(audio, key) for key in ("num_mel_bins", "input_dim", "n_mels") if hasattr(audio, key)), 16)
    if "input_features" not in asked:
        return
    for frames in (2 * getattr(audio, "max_source_positions", 32), 96):
        for shape in ((2, mels, frames), (2, frames, mels)):
            for mask in ({}, dict.fromkeys(("feature_attention_mask", "input_features_mask"), torch.ones(2, frames))):
                masks = {name: ones.long() for name, ones in mask.items()}
                yield {"input_features": torch.randn(shape), **masks}


def _first(size: Any) -> int:
    return size if isinstance(size, int) else next(iter(size))


def _part(config: Any, *names: str) -> Any:
    for name in names:
        for key in vars(config):
            if key.startswith(name) and isinstance(getattr(config, key), PretrainedConfig):
                return getattr(config, key)
    return config


def _with_placeholders(model: Any, asked: Any, kind: str, given: Inputs) -> Iterator[Inputs]:
    """The batch whose rows begin with as many placeholders as the model says that it needs, if there is one."""
    names = [name for name in TOKENS if name.startswith(kind)]
    token = next((value for name in names if (value := getattr(model.config, name, None)) is not None), None)
    counts, tried = [HEADS, 0], set()
    while counts:
        count = counts.pop(0)
        if count in tried or count > 150:
            continue
        tried.add(count)
        batch = _completed(asked, {**_marked(count, token), **given})
        try:
            with torch.no_grad():
                if _matters(model, batch):
                    yield batch
                    return
        except Exception as error:
            said = re.search(r"(features|value tensor of shape)(?!.*features)(.*)", str(error), re.DOTALL)
            if said is None:
                continue
            numbers = [int(number) for number in re.findall(r"\d+", said[2])]
            counts += [n // 2 for n in numbers if n % 2 == 0]
            counts += [n // 2 // WIDTH for n in numbers if n % (2 * WIDTH) == 0]
            # Some say how many sounds there are, and not how many features each has.
            counts += range(24) if numbers == [2] else ()


def _matters(model: Any, batch: Inputs) -> bool:
    """Whether the loss depends on what is seen or heard."""
    changed = {
        key: value + torch.randn_like(value) if value.is_floating_point() else value for key, value in batch.items()
    }
    return bool(abs(model(**batch)["loss"] - model(**changed)["loss"]) > 1e-7)


def _marked(count: int, token: int | None) -> Inputs:
    batch = text(12 + count)
    marked_BS = torch.zeros_like(batch["input_ids"])
    marked_BS[:, 1 : 1 + count] = 1
    if count and token is not None:
        batch["input_ids"][marked_BS == 1] = token
    if count:
        batch["labels"][:, : 3 + count] = -100
    length = len(marked_BS[0])
    return {
        **batch,
        "image_embeds_position_mask": marked_BS,
        "image_attention_mask": torch.ones(2, length, 1, dtype=torch.long),
        "cross_attention_mask": torch.ones(2, length, 1, HEADS, dtype=torch.long),
        **dict.fromkeys(("token_type_ids", "mm_token_type_ids"), marked_BS if token is not None else marked_BS * 0),
    }


def _completed(asked: Any, batch: Inputs) -> Inputs:
    """Leave out what the forward does not know by name."""
    always = ("input_ids", "labels")
    return {name: value for name, value in batch.items() if (name in asked or name in always) and value is not None}
