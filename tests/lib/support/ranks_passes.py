"""Evaluate and train on one of several ranks, stock and with our loss; what torchrun starts.

torchrun --nproc-per-node 2 ranks_passes.py HOST OUT
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1]))

from dft_plugin import activate
from support import between, tiny, training

ROWS = training.rows(10, seed=1)
OTHERS = training.rows(7, seed=2)
WIDTH = max(len(row["input_ids"]) for row in (*ROWS, *OTHERS))


def collate(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad to one width, since a dispatched batch is put together from several."""
    batch = training.collate([*features, {"input_ids": [0] * WIDTH, "labels": [-100] * WIDTH}])
    return {key: value[:-1] for key, value in batch.items()}


class Sizes(BatchSampler):
    """Batches of any size."""

    def __init__(self, *sizes: int, batch_size: int | None = None) -> None:
        self.sizes, self.batch_size, self.drop_last = sizes, batch_size, False

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        for size in self.sizes:
            yield list(range(start, start + size))
            start += size

    def __len__(self) -> int:
        return len(self.sizes)


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        return iter(OTHERS)


Loader = Callable[[Any], Any]
"""Makes an evaluation loader from a trainer."""


def plain(trainer: Any) -> Any:
    return DataLoader(ROWS, 4, collate_fn=collate)


def distributed(trainer: Any) -> Any:
    return DataLoader(OTHERS, 2, sampler=DistributedSampler(OTHERS, shuffle=False), collate_fn=collate)


def of_any_size(trainer: Any) -> Any:
    return trainer.accelerator.prepare(DataLoader(ROWS, batch_sampler=Sizes(2, 3, 1, 4), collate_fn=collate))


def uneven(trainer: Any) -> Any:
    # As Axolotl does with packed batches.
    trainer.accelerator.even_batches = False
    return of_any_size(trainer)


def streamed(trainer: Any) -> Any:
    return trainer.accelerator.prepare(DataLoader(Stream(), 2, collate_fn=collate))


class Wrapped:
    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)


def wrapped(trainer: Any) -> Any:
    return Wrapped(trainer.accelerator.prepare(DataLoader(ROWS, 4, collate_fn=collate)))


CASES: dict[str, tuple[list[Any], dict[str, Any], Loader | None]] = {
    "prepared": (ROWS, {}, None),
    "only repeats on one rank": (ROWS[:2], {}, None),
    "drop_last": (ROWS, {"dataloader_drop_last": True}, None),
    "split_batches": (ROWS, {"accelerator_config": {"split_batches": True}}, None),
    "dispatched": (OTHERS, {"accelerator_config": {"dispatch_batches": True}}, None),
    "dispatched and split": (OTHERS, {"accelerator_config": {"dispatch_batches": True, "split_batches": True}}, None),
    "streamed and dispatched": (OTHERS, {}, streamed),
    "streamed": (OTHERS, {"accelerator_config": {"dispatch_batches": False}}, streamed),
    "plain": (ROWS, {}, plain),
    "a sampler of one's own": (OTHERS, {}, distributed),
    "batches of any size": (ROWS, {}, of_any_size),
    "uneven batches of any size": (ROWS, {}, uneven),
    "wrapped": (ROWS, {}, wrapped),
    "workers": (ROWS, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}, None),
    "steps that call themselves on halves": (ROWS, {"mixin": between.InHalves}, None),
    "a mean of the ranks": (ROWS, {"average_tokens_across_devices": False}, None),
}


def make(
    host: str, out: str, rows: list[Any], loader: Loader | None = None, mixin: type | None = None, **changes: Any
) -> Any:
    build = {"transformers": training.trainer, "trl": training.sft_trainer}[host]
    size = {"per_device_eval_batch_size": 2, "per_device_train_batch_size": 2, "ddp_find_unused_parameters": False}
    trainer = build(Path(out), tiny.llama(), **{**size, **changes})
    if mixin is not None:
        trainer.__class__ = type("Own", (mixin, type(trainer)), {})
    trainer.eval_dataset = Dataset.from_list(rows)
    trainer.data_collator = collate
    if loader is not None:
        trainer.get_eval_dataloader = lambda dataset=None: loader(trainer)
    return trainer


class Talks(TrainerCallback):
    """Logs on one rank alone, as Axolotl's evaluation of a benchmark does."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.trainer.is_world_process_zero():
            self.trainer.log({"x_loss": 1.0})
            self.trainer.log({"loss": 1.0})


class Drops:
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class PassesOn:
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def evaluated(host: str, out: str) -> dict[str, Any]:
    found = {}
    for name, (rows, changes, loader) in CASES.items():
        if host == "trl" and name != "prepared" and changes:
            continue
        stock = make(host, out, rows, loader, **changes).evaluate()
        ours = make(host, out, rows, loader, **changes)
        activate(ours, "nll")
        # Twice: nothing is left behind.
        found[name] = stock["eval_loss"], ours.evaluate(), ours.evaluate()
    return found


def trained(host: str, out: str, world: int) -> dict[str, Any]:
    """Steps of four rows, on however many ranks."""
    found = {}
    for mixin, averaged in ((None, True), (None, False), (Drops, False), (PassesOn, True)):
        trainer = make(
            host,
            out,
            ROWS,
            per_device_train_batch_size=2 // world,
            gradient_accumulation_steps=2,
            average_tokens_across_devices=averaged,
            eval_strategy="steps",
            eval_steps=1,
            prediction_loss_only=True,
        )
        trainer.add_callback(Talks(trainer))
        if mixin is not None and host == "transformers":
            trainer.__class__ = type("Own", (mixin, type(trainer)), {})
        activate(trainer)
        trainer.train()
        key = f"{mixin.__name__ if mixin else 'stock'}, average_tokens_across_devices={averaged}"
        model = trainer.accelerator.unwrap_model(trainer.model)
        predicted = trainer.predict(Dataset.from_list(OTHERS)).metrics
        found[key] = training.trained(model), trainer.state.log_history, predicted
    return found


def main(host: str, out: str) -> None:
    torch.set_num_threads(1)
    world = training.trainer(Path(out)).args.world_size
    found = {"trained": trained(host, out, world)}
    if world > 1:
        found["evaluated"] = evaluated(host, out)
    if training.trainer(Path(out)).is_world_process_zero():
        torch.save(found, Path(out) / "saved.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
