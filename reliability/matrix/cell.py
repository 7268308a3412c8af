"""One cell on one rank: three steps through a Trainer, with our loss or the stock one."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState
from support import training
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from dft_plugin import activate
from dft_plugin.errors import NonFiniteError
from reliability.matrix.columns import BATCH, COLUMNS, STEPS, Column, Rows, TakeOver
from reliability.matrix.engines.all import engine
from reliability.matrix.engines.base import Engine


@dataclass(frozen=True)
class Cell:
    """What is trained.

    Attributes:
        column: its name.
        engine: its key; empty: one process alone.
        shares: how many parts of a step's rows there are.
        experts: whether the model has experts in every column.
        stock: whether the stock loss is trained, without us.
    """

    column: str
    engine: str
    shares: int
    experts: bool = False
    stock: bool = False


@dataclass(frozen=True)
class Trained:
    """What came of it.

    Attributes:
        losses: of each step, as logged.
        statistics: `dft/*` of each step, and of the evaluation.
        weights: what was trained, whole.
        moved: the largest change of a weight, over the largest weight.
        split: whether the engine did what the row claims.
    """

    losses: list[float]
    statistics: list[dict[str, float]]
    weights: dict[str, Tensor]
    moved: float
    split: bool


def collate(features: Rows) -> dict[str, Tensor]:
    """Pad to a multiple of four, since two ranks that share sequences take two pieces of each."""
    batch = training.collate(features)
    missing = -batch["input_ids"].shape[1] % 4
    fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {key: nn.functional.pad(value, (0, missing), value=fill[key]) for key, value in batch.items()}


class InOrder(Trainer):
    """Takes its rows in their order, so that every split of a step holds the same."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def train(cell: Cell, folder: Path, world: int) -> Trained:
    """Train. Every rank must call it.

    Args:
        cell: what.
        folder: of this rank.
        world: how many processes; one takes all shares as further micro-batches.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    column, below = COLUMNS[cell.column], engine(cell.engine, folder, cell.experts)
    try:
        with below.around():
            torch.manual_seed(0)
            model = _made(column, below, world)
            begun = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
            repeat = cell.shares if world == 1 else 1
            trainer = _trainer(cell, folder, model, below.arguments(), repeat)
            below.install(trainer)
            attachment = None if cell.stock else activate(trainer, column.loss)
            if column.bypasses and attachment is not None:
                trainer.add_callback(TakeOver(attachment.model))
            stopped = _run(trainer)
            if stopped is not None and (cell.stock or column.nonfinite != "error"):
                raise stopped
            evaluated = trainer.evaluate() if column.evaluates else {}
            weights = below.weights(trainer)
            return _found(cell, trainer, evaluated, weights, begun, below.is_split(trainer))
    finally:
        # A trainer of the next cell makes them anew.
        AcceleratorState._reset_state()
        PartialState._reset_state()
        GradientState._reset_state()


class NotMadeError(Exception):
    """A model could not be made on some rank; nothing of ours has been asked yet."""


def _made(column: Column, below: Engine, world: int) -> Any:
    """Make the model, or fail on all ranks: one that went on alone would wait for the others."""
    model, said = None, ""
    try:
        model = column.make(below.base)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    every = [said] * world
    if world > 1:
        dist.all_gather_object(every, said)
    if any(every):
        raise NotMadeError(next(filter(None, every)))
    return model


def _run(trainer: Trainer) -> NonFiniteError | None:
    try:
        trainer.train()
    except NonFiniteError as error:
        return error
    return None


def _trainer(cell: Cell, folder: Path, model: Any, own: dict[str, Any], repeat: int) -> Trainer:
    column = COLUMNS[cell.column]
    changes = {
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "gradient_accumulation_steps": column.accumulation * repeat,
        "max_steps": STEPS,
        "ddp_find_unused_parameters": False,
        **own,
    }
    rows: Rows = column.rows(cell.shares)
    held_out: Any = column.held_out(cell.shares)
    return InOrder(
        model=model,
        args=TrainingArguments(**training.arguments(folder / "out", **changes)),
        data_collator=collate,
        train_dataset=rows,  # type: ignore[arg-type]  # a list is a dataset
        eval_dataset=held_out,
    )


def _found(
    cell: Cell,
    trainer: Any,
    evaluated: dict[str, float],
    weights: dict[str, Tensor],
    begun: dict[str, Tensor],
    split: bool,
) -> Trained:
    # Of a step that is left out the trainer logs a loss of its own making.
    logs = [entry for entry in training.train_logs(trainer) if not entry.get("dft/skipped")]
    wanted = STEPS if cell.stock else COLUMNS[cell.column].compared
    if len(logs) != wanted:
        raise AssertionError(f"{len(logs)} steps trained something, and not {wanted}")
    statistics = [{key: value for key, value in entry.items() if key.startswith("dft/")} for entry in logs]
    if evaluated:
        statistics.append({key: value for key, value in evaluated.items() if "dft/" in key})
    moved = [_moved(weights[name], begun[name]) for name in begun.keys() & weights.keys()]
    return Trained([entry["loss"] for entry in logs], statistics, weights, max(moved, default=1.0), split)


def _moved(now: Tensor, before: Tensor) -> float:
    if now.shape != before.shape or type(now) is not type(before):
        return 0.0
    return float((now - before).abs().max() / before.abs().max().clamp_min(1e-12))
