"""DeepSpeed's engines: ZeRO, AutoTP, Ulysses."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from accelerate import ParallelismConfig
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper, DeepSpeedOptimizerWrapper
from support.on_gpus import on_gpus
from support.over_gloo import over_gloo
from torch import Tensor

from reliability.matrix.engines.base import Engine, Wrapping, named, sgd

# Tiny tensors would stay whole on every rank, and so would a weight that was used a moment ago.
SMALL = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}
ON_CPU = {"device": "cpu", "pin_memory": False}
over_gloo()


class Zero(Wrapping):
    """ZeRO of one stage.

    Args:
        folder: of this rank and cell.
        experts: whether its model has experts in every column.
        zero: the section `zero_optimization`.
        config: other sections.
    """

    def __init__(self, folder: Path, experts: bool = False, zero: Any = None, **config: Any) -> None:
        super().__init__(folder, experts)
        self.zero, self.config = zero or {}, config

    def wrap(self, trainer: Any, model: Any, optimizer: Any) -> tuple[Any, Any]:
        """Make the engine, and have it called as accelerate calls it."""
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        config = {
            "train_micro_batch_size_per_gpu": trainer.args.per_device_train_batch_size,
            "gradient_accumulation_steps": trainer.args.gradient_accumulation_steps,
            # What `auto` of a config becomes; DeepSpeed's own default is 1.
            "gradient_clipping": trainer.args.max_grad_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": self.zero,
            **self.config,
        }
        engine, theirs, *_ = deepspeed.initialize(model=model, optimizer=sgd(model, optimizer), config=config)
        wrapper, accelerator = DeepSpeedEngineWrapper(engine), trainer.accelerator

        def backward(loss: Tensor, **kwargs: Any) -> None:
            # What the Trainer adds where accelerate says that DeepSpeed runs.
            wrapper.backward(loss, sync_gradients=accelerator.sync_gradients, scale_wrt_gas=False, **kwargs)

        accelerator.backward = backward
        return engine, DeepSpeedOptimizerWrapper(theirs)

    def is_split(self, trainer: Any) -> bool:
        """Say whether the engine ran, and in stage 3 whether parameters are parts."""
        parts = all(p.numel() == 0 for p in trainer.model.parameters()) or self.zero.get("stage") != 3
        return isinstance(trainer.model_wrapped, deepspeed.DeepSpeedEngine) and parts

    def weights(self, trainer: Any) -> dict[str, Tensor]:
        """Gather."""
        parameters = [p for p in trainer.model.parameters() if hasattr(p, "ds_id")]
        with deepspeed.zero.GatheredParameters(parameters):
            return named(trainer.model)


class AutoTP(Zero):
    """Tensor parallelism of DeepSpeed's own making."""

    def __init__(self, folder: Path, experts: bool = False) -> None:
        size = dist.get_world_size()
        super().__init__(folder, experts, {"stage": 0}, tensor_parallel={"autotp_size": size})

    def arguments(self) -> dict[str, Any]:
        """Have all ranks read the same rows."""
        return {"parallelism_config": ParallelismConfig(tp_size=dist.get_world_size())}

    def around(self) -> Any:
        """Have accelerate accept a CPU."""
        return on_gpus()

    def is_split(self, trainer: Any) -> bool:
        """Say whether layers hold parts of their weights."""
        return any(p.shape != self.shapes.get(name, p.shape) for name, p in trainer.model.named_parameters())

    def weights(self, trainer: Any) -> dict[str, Tensor]:
        """Gather what its layers have cut."""
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, named(trainer.model))
        return {name: joined([part[name] for part in parts], self.shapes[name]) for name in parts[0]}


class Ulysses(Engine):
    """Sequences split over ranks, as a Trainer is told to."""

    def arguments(self) -> dict[str, Any]:
        """Ask for it."""
        return {"parallelism_config": ParallelismConfig(sp_size=dist.get_world_size(), sp_backend="deepspeed")}

    def around(self) -> Any:
        """Have accelerate accept a CPU."""
        return on_gpus()


ENGINES = {
    "zero0": functools.partial(Zero, zero={"stage": 0}),
    "zero1": functools.partial(Zero, zero={"stage": 1}),
    "zero2": functools.partial(Zero, zero={"stage": 2}),
    "zero3": functools.partial(Zero, zero={"stage": 3, **SMALL}),
    "zero3-offload": functools.partial(
        Zero, zero={"stage": 3, **SMALL, "offload_param": ON_CPU, "offload_optimizer": ON_CPU}
    ),
    "autotp": AutoTP,
    "ulysses": Ulysses,
}


def joined(parts: list[Tensor], whole: torch.Size) -> Tensor:
    """Put together the parts of a weight, along the one dimension in which they fall short of it."""
    if parts[0].shape == whole:
        return parts[0]
    short = [d for d in range(len(whole)) if parts[0].shape[d] != whole[d]]
    return torch.cat(parts, dim=short[0])
