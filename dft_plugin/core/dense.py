"""Tensors of strides: of another layout, few operations of torch work, and they say so in torch's own words."""

from __future__ import annotations

import torch
from torch import Tensor


def require_dense(error: type[ValueError], **given: Tensor) -> None:
    """Refuse tensors that are sparse, nested, or packed for one backend.

    Args:
        error: that is raised.
        given: by the names of the arguments.

    Raises:
        error: names the first, and says how to make it dense.
    """
    for name, tensor in given.items():
        # Of a nested one hardly anything can be asked, its shape not either.
        if not tensor.is_nested and tensor.layout == torch.strided:
            continue
        said = "nested" if tensor.is_nested else f"of layout {tensor.layout}"
        rows = ", or give a row at a time"
        how = f"`.to_padded_tensor(...)`, with -100 where labels end{rows}" if tensor.is_nested else "`.to_dense()`"
        raise error(f"{name} is a tensor {said}; a dense one is needed: {how}.")
