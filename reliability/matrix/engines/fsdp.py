"""FSDP1 and FSDP2, called directly."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy
from torch.distributed.tensor import DTensor

from reliability.matrix.engines.base import Wrapping, base_of, named, sgd


class FSDP1(Wrapping):
    """The layers, and the rest."""

    def wrap(self, trainer: Any, model: Any, optimizer: Any) -> tuple[Any, Any]:
        """Wrap; as the Trainer does with FSDP1, its model is the wrapper from then on."""
        layers = set(base_of(model).model.layers)
        apart = functools.partial(lambda_auto_wrap_policy, lambda_fn=lambda module: module in layers)
        cpu = torch.device("cpu")
        wrapped = FullyShardedDataParallel(model, auto_wrap_policy=apart, use_orig_params=True, device_id=cpu)
        trainer.model = wrapped
        return wrapped, sgd(wrapped, optimizer)

    @contextmanager
    def no_sync(self, model: Any) -> Iterator[None]:
        """As accelerate does."""
        with model.no_sync():
            yield

    def is_split(self, trainer: Any) -> bool:
        """Say whether parameters are parts."""
        return isinstance(trainer.model, FullyShardedDataParallel)

    def weights(self, trainer: Any) -> dict[str, Tensor]:
        """Gather."""
        with FullyShardedDataParallel.summon_full_params(trainer.model, writeback=False):
            return named(trainer.model)


class FSDP2(Wrapping):
    """The layers, some modules beside them, and the root.

    Args:
        folder: of this rank and cell.
        apart: which modules of the causal LM are a group of their own.
        mesh: its shape; empty: one dimension of all ranks. The first of two is that of replicas.
        options: of `fully_shard`.
        experts: whether its model has experts in every column.
    """

    def __init__(
        self,
        folder: Path,
        apart: tuple[str, ...] = (),
        mesh: tuple[int, ...] = (),
        experts: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(folder, experts)
        self.apart, self.mesh, self.options = apart, mesh, options

    def wrap(self, trainer: Any, model: Any, optimizer: Any) -> tuple[Any, Any]:
        """Shard in place."""
        names = ("replicate", "shard") if len(self.mesh) > 1 else None
        shape = self.mesh or (torch.distributed.get_world_size(),)
        shard(model, self.apart, mesh=init_device_mesh("cpu", shape, mesh_dim_names=names), **self.options)
        return model, sgd(model, optimizer)

    @contextmanager
    def no_sync(self, model: Any) -> Iterator[None]:
        """As accelerate does."""
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def is_split(self, trainer: Any) -> bool:
        """Say whether all parameters are parts."""
        return all(isinstance(p, DTensor) for p in trainer.model.parameters())


def shard(model: Any, apart: tuple[str, ...], **options: Any) -> None:
    """Call `fully_shard` on the layers, on a group of modules, and on the root."""
    base = base_of(model)
    for layer in base.model.layers:
        fully_shard(layer, **options)
    if apart:
        fully_shard([base.get_submodule(name) for name in apart], **options)
    fully_shard(model, **options)


BFLOAT16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
ENGINES = {
    "fsdp1": FSDP1,
    "fsdp2": FSDP2,
    "fsdp2-head": functools.partial(FSDP2, apart=("lm_head",)),
    "fsdp2-norm-head": functools.partial(FSDP2, apart=("model.norm", "lm_head")),
    "fsdp2-offload": functools.partial(FSDP2, offload_policy=CPUOffloadPolicy(pin_memory=False)),
    "fsdp2-bf16": functools.partial(FSDP2, mp_policy=BFLOAT16),
    "hsdp": functools.partial(FSDP2, mesh=(2, 2)),
}
