"""The trainer that `llamafactory-cli train` would begin with, for `dft reference`, and what it reads afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dft_llamafactory import arguments
from dft_llamafactory.conflicts_v1 import uses_v1
from dft_plugin.config.hosts import Launch
from dft_plugin.config.rules import is_on
from dft_plugin.errors import ConflictError

TOKENIZED = "tokenized"
"""Where in a folder rows are that `tokenized_path` takes."""


def show(launch: Launch, columns: Sequence[str], take: Callable[[Any], None]) -> None:
    """Make a trainer as LLaMA-Factory's command does, and hand it over.

    Raises:
        ConflictError: rows are packed such that one is no sequence of tokens, or it is the v1 trainer.
    """
    words = [launch.config_path, *(f"{key}={text}" for key, text in launch.overrides)]
    config = dict(arguments.read(words).config)
    if uses_v1(os.environ):
        raise ConflictError(["`dft reference` knows LLaMA-Factory's trainer of before v1 alone: leave out USE_V1."])
    if is_on(config.get("neat_packing")):
        raise ConflictError(
            [
                "`neat_packing: true`: LLaMA-Factory packs while it tokenises, and a row of its `tokenized_path` is "
                "several sequences, which `dft reference` would run as one. Set `neat_packing: false`."
            ]
        )
    if config.get("dataset"):
        # What is there may be of another template or loss.
        config["tokenized_path"] = None
    # Of a training on several devices, and of an upload.
    config |= {"push_to_hub": False, "deepspeed": None, "fsdp": ""}
    from llamafactory.extras.misc import get_device_count
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
    from llamafactory.train.tuner import run_exp

    from dft_llamafactory.columns import carrying
    from dft_plugin.hf.recording import Carried
    from dft_plugin.hf.run import first_trainer

    if get_device_count() > 1:
        raise ConflictError(
            [
                "`dft reference` runs in one process, in which LLaMA-Factory takes one device: show it one, "
                f"`CUDA_VISIBLE_DEVICES=0 dft reference {launch.config_path}`."
            ]
        )
    with carrying(Carried(names=tuple(columns))):
        trainer = first_trainer(CustomSeq2SeqTrainer, lambda: run_exp(config))
    take(trainer)


def tokenized(folder: Path, splits: Sequence[str]) -> Path:
    """Write the rows of a folder once more, in the form that `tokenized_path` takes; return where."""
    from datasets import load_dataset

    done, unfinished, cache = folder / TOKENIZED, folder / f".{TOKENIZED}", folder / ".cache"
    if done.exists():
        return done
    files = {
        # LLaMA-Factory's word for what is evaluated.
        split.replace("test", "validation", 1): sorted(map(str, (folder / "data").glob(f"{split}-[0-9]*.parquet")))
        for split in splits
    }
    try:
        load_dataset("parquet", data_files=files, cache_dir=str(cache)).save_to_disk(str(unfinished))
        unfinished.replace(done)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        shutil.rmtree(unfinished, ignore_errors=True)
    return done
