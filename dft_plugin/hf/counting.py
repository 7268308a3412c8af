"""How many target tokens an optimizer step has, over its micro-batches and ranks, and how many ranks hold copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from dft_plugin.config.handover import swapped
from dft_plugin.core.targets import IGNORE_INDEX


def fetch_counted(
    trainer: Any, fetch: Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[list[Any], Any, Tensor | None]:
    """Fetch the micro-batches of a step, and count its targets. Every rank must call it.

    Where transformers counts as well, it counts this rank's own meanwhile: to sum one number over ranks twice is one
    more wait of all ranks for each other, in every step.

    Args:
        trainer: a `transformers.Trainer`.
        fetch: its `get_batch_samples`, called with what follows.
        args: positional arguments of it.
        kwargs: its keyword arguments.

    Returns:
        The micro-batches, the number of items as the trainer counts them, and `count_targets` of them.
    """
    theirs_too = trainer.args.average_tokens_across_devices and trainer.args.world_size > 1
    alone = theirs_too and all(map(_is_transformers, (fetch, getattr(trainer, "_get_num_items_in_batch", fetch))))
    with swapped(trainer.args, "average_tokens_across_devices", False) if alone else nullcontext():
        samples, theirs = fetch(*args, **kwargs)
    count = count_targets(trainer, samples)
    if alone and count is None and theirs is not None:
        theirs = trainer.accelerator.reduce(theirs, reduction="sum")
    return samples, theirs, count


def _is_transformers(method: Any) -> bool:
    """Whether a method is transformers' own: others may count something else, or read the setting for more."""
    return getattr(method, "__module__", None) == "transformers.trainer"


def count_targets(trainer: Any, micro_batches: Iterable[Any]) -> Tensor | None:
    """Count the targets of one optimizer step, those of all ranks. Every rank must call it.

    Args:
        trainer: a `transformers.Trainer`.
        micro_batches: this rank's, as the loader gave them.

    Returns:
        The count as a tensor on the trainer's device; None where the batches carry no labels.
    """
    counts = [_targets(batch) for batch in micro_batches]
    if not counts or any(count is None for count in counts):
        return None
    accelerator = trainer.accelerator
    device = accelerator.device
    total = torch.stack([count.to(device) for count in counts if count is not None]).sum()
    # Ranks that share a batch have counted it once each.
    shared = tensor_parallel_size(trainer) * context_parallel_size(trainer)
    reduced: Tensor = accelerator.reduce(total, reduction="sum")
    return reduced if shared == 1 else reduced / shared


def _targets(batch: Any) -> Tensor | None:
    """Count in one micro-batch. No position predicts position 0."""
    if not isinstance(batch, Mapping):
        return None
    shifted, labels = batch.get("shift_labels"), batch.get("labels")
    if isinstance(shifted, Tensor):
        return shifted.ne(IGNORE_INDEX).sum()
    return labels[..., 1:].ne(IGNORE_INDEX).sum() if isinstance(labels, Tensor) else None


def averaging_processes(trainer: Any) -> int:
    """Over how many ranks gradients are averaged: all but the tensor-parallel copies."""
    processes: int = trainer.accelerator.num_processes
    return max(1, processes // tensor_parallel_size(trainer))


def tensor_parallel_size(trainer: Any) -> int:
    """How many ranks score the same tokens, however that was set up."""
    accelerator, model = trainer.accelerator, trainer.model
    sizes = [getattr(accelerator.parallelism_config, "tp_size", 1) if _has_config(accelerator) else 1]
    sizes.append(trainer.get_tp_size())
    sizes += [getattr(model, name, None) or 1 for name in ("tp_size", "_tp_size")]
    for holder, name in ((accelerator, "torch_device_mesh"), (accelerator.state, "ds_device_mesh")):
        mesh = getattr(holder, name, None)
        if mesh is not None and "tp" in (mesh.mesh_dim_names or ()):
            sizes.append(mesh["tp"].size())
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None:
        sizes.append(plugin.deepspeed_config.get("tensor_parallel", {}).get("autotp_size", 1))
    return max(int(size) for size in sizes)


def context_parallel_size(trainer: Any) -> int:
    """Over how many ranks each sequence is split."""
    accelerator = trainer.accelerator
    return int(getattr(accelerator.parallelism_config, "cp_size", 1)) if _has_config(accelerator) else 1


def _has_config(accelerator: Any) -> bool:
    return getattr(accelerator, "parallelism_config", None) is not None


def number_of_items(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return `num_items_in_batch` from the arguments of a `compute_loss`, which is its fourth."""
    return args[3] if len(args) > 3 else kwargs.get("num_items_in_batch")


def with_number_of_items(
    count: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a `compute_loss` with another `num_items_in_batch`."""
    if len(args) > 3:
        return (*args[:3], count, *args[4:]), dict(kwargs)
    return args, {**kwargs, "num_items_in_batch": count}


def micro_batches_of(trainer: Any) -> int:
    """Return the number of micro-batches of the step that is going on; the last one of an epoch may have fewer."""
    return int(getattr(trainer, "current_gradient_accumulation_steps", trainer.args.gradient_accumulation_steps))


def is_scaled(trainer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a trainer takes the loss of its `compute_loss`, called with these, as divided by all that it needs."""
    # Since transformers 5.19 the trainer may say so itself; before, nobody would read it.
    scaled = trainer.loss_is_scaled_for_ga if hasattr(Trainer, "loss_is_scaled_for_ga") else None
    if scaled is None:
        scaled = trainer.model_accepts_loss_kwargs and number_of_items(args, kwargs) is not None
    return bool(scaled)
