"""Passes through a model that only look, or may have to be run again: what they draw, write or fill is put back."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Restore = Callable[[], object]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run passes inside this block, of `copied` inputs; afterwards nothing says that they ran.

    Random numbers are drawn again by whoever comes next (of torch on every device that the model uses, of Python
    and NumPy, by which speech encoders mask their spectrograms), and buffers hold what they held: a BatchNorm in
    train mode updates its running statistics in every pass, with or without gradients. Nothing waits for the device.
    """
    restores = [*_random_states(model), *_buffers(model)]
    try:
        with uncached():
            yield
    finally:
        for restore in restores:
            restore()


@contextmanager
def uncached() -> Iterator[None]:
    """Neither use nor leave what autocast has made of a parameter.

    It keeps that by the parameter, until the outermost region ends: of other weights that stood in it for a while, or
    without the graph that the model's own pass would have made.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def copied(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the arguments of a forward, so that a pass neither fills a cache among them nor writes into a tensor.

    A cache is grown in place by the model, and the caller hands it to the next pass too (prefix tuning). Copies of
    tensors in a graph are in it, too. What cannot be copied (a lock, a process group) is handed on as it is.
    """
    with _ClonesForCopies():
        copies: dict[str, Any] = _copied(dict(inputs), {})
        return copies


def _copied(value: Any, done: dict[int, Any]) -> Any:
    """Copy `value`, or as much of it as can be.

    Args:
        value: anything.
        done: copies by the id of what they are of, so that what was one thing stays one.
    """
    if id(value) in done:
        return done[id(value)]
    try:
        done[id(value)] = copy.deepcopy(value)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:
        # Whatever the thing at fault raises when it is asked for a copy: its neighbours are copied all the same.
        _copy_parts(value, done)
    return done[id(value)]


def _copy_parts(value: Any, done: dict[int, Any]) -> None:
    shell: Any
    try:
        # Tuples are made with their parts.
        done[id(value)] = shell = value if isinstance(value, tuple) else copy.copy(value)
    except Exception:
        done[id(value)] = value
        return
    if isinstance(value, tuple):
        parts = [_copied(part, done) for part in value]
        done[id(value)] = type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    elif isinstance(value, list):
        shell[:] = [_copied(part, done) for part in value]
    elif isinstance(value, dict):
        shell.update((key, _copied(part, done)) for key, part in value.items())
    if shell is not value and hasattr(shell, "__dict__"):
        vars(shell).update({name: _copied(part, done) for name, part in vars(value).items()})


class Undisturbed:
    """Random state, buffers and the caller's arguments as they are before a pass that may have to be run again.

    Args:
        model: what runs.
        inputs: keyword arguments of its forward.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        self._restores = [*_random_states(model), *_buffers(model)]
        self._inputs = copied(inputs)

    def again(self) -> dict[str, Any]:
        """Put random state and buffers back, and return the arguments as they were.

        They are copies: the caller's own caches hold what the first pass put there.
        """
        for restore in self._restores:
            restore()
        return copied(self._inputs)


class _ClonesForCopies(TorchFunctionMode):
    """Lets `deepcopy` copy tensors that are inside a graph, as the cache of prefix tuning is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            return args[0].clone()
        return func(*args, **(kwargs or {}))


def _random_states(model: nn.Module) -> list[Restore]:
    restores: list[Restore] = [
        _kept(torch.get_rng_state, torch.set_rng_state),
        _kept(random.getstate, random.setstate),
    ]
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        restores.append(_kept(numpy.random.get_state, numpy.random.set_state))
    for device in _devices(model):
        module: Any = torch.get_device_module(device)
        # Where nothing was drawn yet, asking would set the device up.
        if not getattr(module, "is_initialized", lambda: True)():
            continue
        # There is one device of this kind, and its functions take none.
        which = () if device.type == "mps" else (device,)
        restores.append(_kept(module.get_rng_state, module.set_rng_state, *which))
    return restores


def _devices(model: nn.Module) -> set[torch.device]:
    devices = {tensor.device for tensor in chain(model.parameters(), model.buffers())}
    accelerator = torch.accelerator.current_accelerator()
    # A build for CUDA names one on a machine that has none.
    if accelerator is not None and torch.accelerator.is_available():
        # Where the weights are offloaded, it computes and they do not say so.
        devices.add(torch.device(accelerator.type, torch.accelerator.current_device_index()))
    return {device for device in devices if device.type not in ("cpu", "meta")}


def _kept(get: Callable[..., Any], set_: Callable[..., Any], *which: Any) -> Restore:
    state = get(*which)
    return lambda: set_(state, *which)


def _buffers(model: nn.Module) -> list[Restore]:
    return [
        _kept_buffer(module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_meta
    ]


def _kept_buffer(module: nn.Module, name: str, buffer: Tensor) -> Restore:
    before = _once(buffer.detach()).clone()

    def restore() -> None:
        module._buffers[name] = buffer
        # Without comparing, for which the device would be waited for, and not counted as a write: an older graph may
        # have saved what is put back.
        with torch.no_grad(), torch.inference_mode(buffer.is_inference()):
            _once(buffer.data).copy_(before)

    return restore


def _once(tensor: Tensor) -> Tensor:
    """Return a tensor in which no number stands in two places, as it does in one that was expanded."""
    for dim, stride in enumerate(tensor.stride() if tensor.layout == torch.strided else ()):
        tensor = tensor.narrow(dim, 0, 1) if stride == 0 and tensor.shape[dim] > 1 else tensor
    return tensor
