"""Recipes written for tests: which cells run every day, stand-in questions, and files on disk."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.data import write as write_data
from recipes.hosts import file_name
from recipes.hosts import write as write_recipe
from recipes.paper import MATH, MULTIMODAL, SETTINGS
from recipes.recipe import make

SWITCHES = ("bf16_weights", "gradient_not_divided")
"""The faults of a run; that of the data is in no recipe."""

DAILY = {("qwen2.5-math-1.5b", False, ()), ("qwen2.5-math-1.5b", False, SWITCHES), ("llama-3.1-8b", True, ())}


def cells(*, seeing: bool = False, every_day: bool = False) -> list[Any]:
    """Every model in full and with LoRA, those of mathematics with faults; what is not of `DAILY` is marked `full`.

    Args:
        seeing: with the model that sees.
        every_day: mark none.
    """
    made = []
    for setting in SETTINGS.values():
        kinds = [(False, ()), (True, ()), *([(False, SWITCHES)] if setting is MATH else [])]
        for model in setting.models if seeing or setting is not MULTIMODAL else ():
            for lora, faults in kinds:
                chosen = every_day or (model.name, lora, faults) in DAILY
                name = f"{model.name}-{'lora' if lora else 'faults' if faults else 'all'}"
                made.append(
                    pytest.param(model.name, lora, faults, id=name, marks=[] if chosen else [pytest.mark.full])
                )
    return made


def written(host: str, into: Path, model: str, **given: Any) -> Path:
    """Write a recipe into a folder."""
    recipe = make(model, **given)
    path = into / file_name(host, recipe)
    write_recipe(host, recipe, path)
    return path


def prepared(host: str, into: Path, word: Callable[[random.Random], str], rows: int = 12) -> list[dict[str, Any]]:
    """Prepare stand-in data of the mathematics for a host, out of a source of twice as many rows; return its rows.

    Args:
        host: which reads them.
        into: a folder.
        word: one that its tokenizer knows.
        rows: how many.
    """
    pick = random.Random(7)
    source = into.with_suffix(".source.jsonl")
    with source.open("w") as file:
        for _ in range(2 * rows):
            asked, said = (" ".join(word(pick) for _ in range(pick.randint(1, n))) for n in (6, 14))
            file.write(json.dumps({"source": "made", "problem": asked, "solution": said}) + "\n")
    write_data(host, MATH, into, source=str(source), rows=rows)
    lines = (into / "train.jsonl").read_text().splitlines() if (into / "train.jsonl").exists() else []
    return [json.loads(line) for line in lines]
