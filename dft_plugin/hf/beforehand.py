"""`dft reference`: the rows that a trainer would train on, written with columns that a frozen model makes of them.

Shapes: B batch, S sequence.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dft_plugin.core.targets import IGNORE_INDEX
from dft_plugin.errors import ConflictError
from dft_plugin.hf.carrying import keys_of
from dft_plugin.hf.columns import LABELS, TOKENS
from dft_plugin.hf.facts import COLUMN
from dft_plugin.hf.recording import Standing, standings
from dft_plugin.hf.shards import Folder, write

MASK, POSITIONS = "attention_mask", "position_ids"

ALONE = (
    "this command runs in one process, and the config asks for FSDP or DeepSpeed. Leave that out for this one "
    "command, in a copy of the config."
)
"""What is said where a config shards a model."""

_OTHER_SENSES = ("images", "image", "videos", "audios", "audio", "pixel_values", "input_features")
"""Columns of data that holds more than text."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        columns: what is computed: `ref_logp`, `ref_mass`, `old_logp`.
        carried: columns of the user's data that go along.
        reference: what stands after `reference:`.
        out: the folder.
        batch_size: rows of a forward pass.
        least: rows of a shard at least; None: what suits.
    """

    columns: tuple[str, ...]
    carried: tuple[str, ...]
    reference: str | None
    out: Path
    batch_size: int
    least: int | None = None


class Watcher(Protocol):
    """Somebody who is told how far it is."""

    def begin(self, total: int, done: int, made_of: Mapping[str, str]) -> None:
        """Say how many rows there are, how many were there already, and of what they are made."""

    def advance(self, rows: int) -> None:
        """Say that so many more were run."""


def compute(trainer: Any, request: Request, watcher: Watcher) -> dict[str, int]:
    """Write the rows of a trainer's datasets, with columns.

    Args:
        trainer: a `transformers.Trainer` as it is when training begins, its data not packed.
        request: what is asked for.
        watcher: is told how far it is.

    Returns:
        Rows by split: `train`, and `test` where the trainer has a dataset to evaluate.

    Raises:
        ConflictError: the data or the model is not such that one process could do it, or the folder holds other rows.
    """
    _require_plain(trainer)
    data = {split: _Rows(dataset, split, request.carried) for split, dataset in _datasets(trainer).items()}
    every = standings(trainer.model, request.reference, request.columns)
    made_of = _made_of(trainer, request, every, data)
    counts = {split: len(rows.dataset) for split, rows in data.items()}
    if not counts.get("train"):
        raise ConflictError(["the training data has no row with a target, so there is nothing to compute."])
    folder = Folder(request.out, made_of, counts, *([] if request.least is None else [request.least]))
    todo = folder.open()
    watcher.begin(sum(counts.values()), sum(counts.values()) - sum(len(shard.rows) for shard in todo), made_of)
    for shard in todo:
        rows = data[shard.split].read(shard.rows)
        write(shard, {**rows, **_columns(trainer, request, every, rows, watcher)})
    return counts


def _columns(
    trainer: Any, request: Request, every: Sequence[Standing], rows: Mapping[str, Any], watcher: Watcher
) -> dict[str, list[Any]]:
    """Return the columns of some rows, a list for each row."""
    found: dict[str, list[Any]] = {name: [None] * len(rows[TOKENS]) for name in request.columns}
    batches = list(_by_length(rows[TOKENS], request.batch_size))
    for standing in every:
        # Each stands for all of them: adapters are not switched for each batch.
        with standing.recording() as attached, trainer.accelerator.autocast():
            for batch in batches:
                made = standing.ask(attached, _collated(rows, batch, standing.asked.device))
                for name, column_BS in made.items():
                    for row, numbers_S in zip(batch, column_BS, strict=True):
                        found[name][row] = numbers_S[: len(rows[TOKENS][row])].numpy()
                if standing is every[-1]:
                    watcher.advance(len(batch))
    return found


def _require_plain(trainer: Any) -> None:
    config = getattr(trainer.model, "active_peft_config", None) if hasattr(trainer.model, "peft_config") else None
    if trainer.args.world_size > 1:
        raise ConflictError(
            ["`dft reference` runs in one process, and here are several. Start it without a launcher."]
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConflictError([ALONE])
    if getattr(config, "is_prompt_learning", False):
        raise ConflictError(
            [
                f"{type(config).__name__} puts a prompt before the tokens, and `dft reference` would run without it. "
                "Train LoRA, or all of the model."
            ]
        )


def _datasets(trainer: Any) -> dict[str, Any]:
    evaluated = trainer.eval_dataset
    found = {"train": trainer.train_dataset}
    if isinstance(evaluated, Mapping):
        found |= {"test_" + re.sub(r"\W", "_", str(name)): dataset for name, dataset in evaluated.items()}
    else:
        found["test"] = evaluated
    return {split: dataset for split, dataset in found.items() if dataset is not None}


class _Rows:
    """Tokenised rows of one split."""

    def __init__(self, dataset: Any, split: str, carried: Sequence[str]) -> None:
        there = keys_of(dataset) or []
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "select_columns"):
            raise ConflictError(
                [
                    f"the {split} data is streamed, so nobody knows how many rows it has, and none could be gone on "
                    "with. Turn streaming off for `dft reference`."
                ]
            )
        if not {TOKENS, LABELS} <= {*there}:
            raise ConflictError(
                [
                    f"the rows of the {split} data hold {', '.join(there)}: columns are computed for tokens, "
                    f"`{TOKENS}` and `{LABELS}`, which the trainer has not made of them."
                ]
            )
        self._senses = [key for key in _OTHER_SENSES if key in there]
        self._named = {name: COLUMN + name if COLUMN + name in there else name for name in carried}
        # Of rows that a host packs while it tokenises, positions begin again.
        beside = [key for key in (MASK, POSITIONS) if key in there]
        kept = [TOKENS, LABELS, *beside, *self._named.values(), *self._senses]
        self.split, self.dataset = split, dataset.select_columns(kept).with_format(None)

    def read(self, rows: range) -> dict[str, Any]:
        """Return lists of a row each, by column, as they are to be written."""
        given = self.dataset[rows.start : rows.stop]
        if any(value is not None and len(value) for key in self._senses for value in given[key]):
            raise ConflictError(
                [f"the {self.split} data holds {', '.join(self._senses)}; `dft reference` runs text alone."]
            )
        # Nothing predicts a row's first token. Where rows are packed, another row would seem to.
        labels = [[IGNORE_INDEX, *row[1:]] if len(row) else row for row in given[LABELS]]
        beside = {MASK: given.get(MASK) or [[1] * len(ids) for ids in given[TOKENS]]}
        if POSITIONS in given:
            beside[POSITIONS] = given[POSITIONS]
        named = {name: given[key] for name, key in self._named.items()}
        return {TOKENS: given[TOKENS], LABELS: labels, **beside, **named}

    def digest(self) -> str:
        """Tell these rows from others."""
        found = hashlib.sha256()
        for start in range(0, len(self.dataset), 1000):
            given = self.dataset[start : start + 1000]
            for key in (TOKENS, LABELS, *self._named.values()):
                for values in given[key]:
                    found.update(len(values).to_bytes(8, "little"))
                    found.update(np.asarray(values, np.float64).tobytes())
        return found.hexdigest()[:16]


def _made_of(trainer: Any, request: Request, every: Sequence[Standing], data: Mapping[str, _Rows]) -> dict[str, str]:
    """Return all that rows and columns depend on, in words."""
    found = {"columns": ", ".join([*request.columns, *request.carried])}
    for standing in every:
        whose = "" if len(every) == 1 else f" of {', '.join(standing.names)}"
        found |= {key + whose: value for key, value in standing.says().items()}
    mixed = trainer.accelerator.mixed_precision
    found["precision"] = f"{trainer.model.dtype}".removeprefix("torch.") + (f" in {mixed}" if mixed != "no" else "")
    tokenizer = getattr(trainer, "processing_class", None)
    if tokenizer is not None:
        found["tokenizer"] = f"{getattr(tokenizer, 'name_or_path', '')} {_tokenizer_digest(tokenizer)}".strip()
    return {**found, **{f"tokens of {split}": rows.digest() for split, rows in data.items()}}


def _tokenizer_digest(tokenizer: Any) -> str:
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    said = [sorted(inner.get_vocab().items()), str(getattr(inner, "chat_template", None))]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _by_length(rows: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Yield which rows go together: the longest first, so that what does not fit into memory is known at once."""
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _collated(rows: Mapping[str, Any], batch: Sequence[int], device: torch.device) -> dict[str, Tensor]:
    """Pad on the right."""
    width = max(1, max(len(rows[TOKENS][row]) for row in batch))
    made = {}
    for key, filler in ((TOKENS, 0), (MASK, 0), (POSITIONS, 0), (LABELS, IGNORE_INDEX)):
        if key not in rows:
            continue
        padded = [[*rows[key][row], *[filler] * (width - len(rows[key][row]))] for row in batch]
        made[key] = torch.tensor(padded, dtype=torch.long, device=device)
    return made
