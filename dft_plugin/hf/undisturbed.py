"""A pass through a model that may have to be run again: what it changed is put back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Undisturbed:
    """Random state, buffers and the caller's caches as they are now.

    Attributes:
        inputs: keyword arguments of the model's forward.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        self._model = model
        self._inputs = copied(inputs)
        self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._random = torch.get_rng_state()
        self._device_random = _device_random_state()

    def again(self) -> dict[str, Any]:
        """Put random state and buffers back.

        Returns:
            The inputs as they were, with copies of caches: the caller's own hold what the first pass put there.
        """
        torch.set_rng_state(self._random)
        if self._device_random is not None:
            _set_device_random_state(self._device_random)
        with torch.no_grad():
            for name, buffer in self._model.named_buffers():
                if name in self._buffers and buffer.shape == self._buffers[name].shape:
                    buffer.copy_(self._buffers[name])
        again: dict[str, Any] = copied(self._inputs)
        return again


def copied(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the objects in a mapping that a forward may write into (caches); tensors of the mapping itself are kept."""
    return {key: value if _is_plain(value) else _copy(value) for key, value in inputs.items()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (Tensor, int, float, str, bool, torch.dtype, torch.device))


def _copy(value: Any) -> Any:
    # Tensors of a graph refuse to be deep-copied; a clone stays in the graph.
    return copy.deepcopy(value, {id(tensor): tensor.clone() for tensor in _tensors(value, set())})


def _tensors(value: Any, seen: set[int]) -> list[Tensor]:
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        parts: list[Any] = list(value.values())
    elif isinstance(value, (tuple, list, set)):
        parts = list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    return [tensor for part in parts for tensor in _tensors(part, seen)]


def _device_random_state() -> Any:
    """Return the random state of every device of the accelerator that is there, whichever kind it is."""
    if not torch.accelerator.is_available():
        return None
    device: Any = torch.get_device_module()
    read = getattr(device, "get_rng_state_all", None) or device.get_rng_state
    return read()


def _set_device_random_state(state: Any) -> None:
    device: Any = torch.get_device_module()
    write = getattr(device, "set_rng_state_all", None) or device.set_rng_state
    write(state)
