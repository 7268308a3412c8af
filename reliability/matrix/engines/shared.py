"""Ranks that share a model's layers, its sequences or its experts: torch's plans and those of transformers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate import ParallelismConfig
from support.on_gpus import on_gpus
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers.distributed import DistributedConfig

from reliability.matrix.engines.base import Engine, Wrapping, base_of, four_bits, made, named, sgd
from reliability.matrix.engines.fsdp import FSDP2, shard

COLUMNS_OF = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
ROWS_OF = ("self_attn.o_proj", "mlp.down_proj")


class TorchPlan(Wrapping):
    """`parallelize_module` by a plan, as torch's tutorial has it; the head gives whole logits.

    Args:
        folder: of this rank and cell.
        experts: whether its model has experts in every column.
        sizes: of the mesh, as accelerate is told; empty: all ranks share the layers.
    """

    def __init__(self, folder: Path, experts: bool = False, sizes: Mapping[str, int] | None = None) -> None:
        super().__init__(folder, experts)
        self.sizes = dict(sizes or {"tp_size": dist.get_world_size()})

    def arguments(self) -> dict[str, Any]:
        """Tell the Trainer, so that ranks which share layers read the same rows."""
        return {"parallelism_config": ParallelismConfig(**self.sizes)}

    def around(self) -> AbstractContextManager[Any]:
        """Have accelerate accept a CPU."""
        return on_gpus()

    def wrap(self, trainer: Any, model: Any, optimizer: Any) -> tuple[Any, Any]:
        """Parallelise the layers and an untied head; then shard over the other dimension, if there is one."""
        mesh, base = trainer.accelerator.torch_device_mesh, base_of(model)
        plan = {name: ColwiseParallel() for name in COLUMNS_OF} | {name: RowwiseParallel() for name in ROWS_OF}
        for layer in base.model.layers:
            parallelize_module(layer, mesh["tp"], plan)
        if base.lm_head.weight is not base.model.embed_tokens.weight:
            parallelize_module(base, mesh["tp"], {"lm_head": ColwiseParallel(output_layouts=Replicate())})
        if self.sizes.get("dp_shard_size", 1) > 1:
            shard(model, (), mesh=mesh["dp_shard"])
        return model, sgd(model, optimizer)

    def is_split(self, trainer: Any) -> bool:
        """Say whether some parameters are parts."""
        return any(isinstance(p, DTensor) for p in trainer.model.parameters())


class ContextParallel(FSDP2):
    """torch's `context_parallel`, entered by the Trainer through accelerate; FSDP2 on the same ranks."""

    def install(self, trainer: Any) -> None:
        """Tell accelerate behind its back, which would have its own FSDP plugin first, and that a GPU."""
        super().install(trainer)
        state, size = trainer.accelerator.state, dist.get_world_size()
        state.parallelism_config = ParallelismConfig(cp_size=size)
        state.device_mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("cp",))

    def wrap(self, trainer: Any, model: Any, optimizer: Any) -> tuple[Any, Any]:
        """Let accelerate put its hooks around attention, then shard."""
        trainer.accelerator._prepare_cp(model, optimizer)
        shard(model, (), mesh=trainer.accelerator.torch_device_mesh["cp"])
        return model, sgd(model, optimizer)


class Loaded(Engine):
    """Split by transformers while it is loaded: `from_pretrained(distributed_config=...)`, in the stock Trainer.

    Args:
        folder: of this rank and cell.
        experts: whether its model has experts in every column.
        sizes: of `DistributedConfig`.
    """

    def __init__(self, folder: Path, experts: bool = False, **sizes: Any) -> None:
        super().__init__(folder, experts)
        self.sizes = sizes

    def around(self) -> AbstractContextManager[Any]:
        """Have accelerate accept a CPU where ranks share layers."""
        return on_gpus() if self.sizes.get("tp_size", 1) > 1 else nullcontext()

    def base(self, *, experts: bool = False, quantised: bool = False, **changes: Any) -> Any:
        """Make, save and load a model."""
        how: dict[str, Any] = {"distributed_config": DistributedConfig(**self.sizes)}
        if quantised:
            how["quantization_config"] = four_bits()
        return self.loaded(made(experts or self.experts, **changes), **how)

    def is_split(self, trainer: Any) -> bool:
        """Say whether some parameters are parts."""
        return any(isinstance(p, DTensor) for p in trainer.model.parameters())

    def weights(self, trainer: Any) -> dict[str, Tensor]:
        """Gather."""
        return named(trainer.model)


ENGINES = {
    "tp": TorchPlan,
    "tp-dp": functools.partial(TorchPlan, sizes={"tp_size": 2, "dp_shard_size": 2}),
    "cp": ContextParallel,
    "hf-fsdp2": functools.partial(Loaded, fsdp_size=2),
    "hf-tp": functools.partial(Loaded, tp_size=2),
    "hf-ep": functools.partial(Loaded, fsdp_size=2, ep_size=2),
    "hf-hsdp": functools.partial(Loaded, fsdp_size=2, dp_replicate_size=2),
    "hf-tp-dp": functools.partial(Loaded, fsdp_size=2, tp_size=2),
}
