"""What a computation really runs, seen below autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class CountGemms(TorchDispatchMode):
    """Counts the matrix products that are run, forward and backward."""

    products = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in self.products
        return func(*args, **(kwargs or {}))


class WatchMemory(TorchDispatchMode):
    """Keeps the memory of what operations return, forward and backward, if it has at least so many bytes."""

    def __init__(self, at_least: int) -> None:
        super().__init__()
        self.at_least = at_least
        self.storages: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for tensor in returned if isinstance(returned, tuple | list) else [returned]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() >= self.at_least:
                # Held, so that no address is seen twice.
                self.storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return returned
