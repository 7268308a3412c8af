"""Models and batches on `meta`, where tensors have a shape and no numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dft_plugin.errors import UnsupportedModelError


def require_numbers(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Refuse a labelled pass without numbers.

    Weights that accelerate has put elsewhere are on `meta` between calls, and are no obstacle.

    Raises:
        UnsupportedModelError: the whole model is on `meta`, or something of the batch.
    """
    if torch.compiler.is_compiling():
        return
    found = [f"`{name}`" for name, value in inputs.items() if isinstance(value, Tensor) and value.is_meta]
    if _is_empty(model):
        found = ["the model's weights", *found]
    if found:
        raise UnsupportedModelError(
            f"{type(model).__name__}: {' and '.join(found)}: on `meta`, where tensors have shapes and no numbers, so "
            "there is no loss to compute. Load the weights (`from_pretrained`, or `model.to_empty(device=...)` and an "
            "initialisation), and give a batch on the model's device."
        )


def _is_empty(model: nn.Module) -> bool:
    # Asked in every pass: the first parameter with numbers ends it.
    parameters = model.parameters()
    first = next(parameters, None)
    if first is None or not first.is_meta or not all(parameter.is_meta for parameter in parameters):
        return False
    return not any(hasattr(module, "_hf_hook") for module in model.modules())
