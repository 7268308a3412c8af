"""Which heads of Hugging Face models can be read, and how to work inside a head's forward.

Shapes: T scored tokens, D hidden size, V vocabulary, R LoRA rank.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dft_plugin.kernels import Head, LowRank, Transform

Result = TypeVar("Result")


@dataclass(frozen=True)
class ReadableHead:
    """A head whose tensors can be read while its forward runs.

    Attributes:
        owner: the module whose forward must be entered, so that its hooks gather the weight.
        linear: holds weight and bias.
        adapters: names of the active LoRA adapters on `owner`.
    """

    owner: nn.Module
    linear: nn.Linear
    adapters: tuple[str, ...] = ()

    def head(self, hidden_TD: Tensor, transform: Transform) -> Head | None:
        """Read the head inside `owner`'s forward; None if its weight is not a whole plain tensor."""
        weight_VD = self.linear.weight
        if type(weight_VD) not in (Tensor, nn.Parameter) or weight_VD.dim() != 2 or not weight_VD.numel():
            return None
        if not weight_VD.is_floating_point():
            return None
        return Head(weight_VD, self.linear.bias, transform, self._low_rank(hidden_TD))

    def _low_rank(self, hidden_TD: Tensor) -> LowRank | None:
        lora: Any = self.owner
        inputs, weights = [], []
        for name in self.adapters:
            down, up = lora.lora_A[name], lora.lora_B[name]
            dropped_TD = lora.lora_dropout[name](hidden_TD.to(down.weight.dtype))
            inputs.append(down(dropped_TD) * lora.scaling[name])
            weights.append(up.weight)
        return LowRank(torch.cat(inputs, 1), torch.cat(weights, 1)) if inputs else None


def read_head(head: nn.Module) -> ReadableHead | str:
    """Find out whether a head can be read.

    Readable are `nn.Linear`, its copy in PEFT's `modules_to_save`, and plain LoRA on it.
    Everything else has a forward of its own, which must be called.

    Returns:
        The readable head, or the reason why it can only be called.
    """
    peft = sys.modules.get("peft")
    if peft is not None:
        if isinstance(head, peft.utils.other.ModulesToSaveWrapper):
            return _read_saved_copy(head)
        if isinstance(head, peft.tuners.tuners_utils.BaseTunerLayer):
            return _read_adapter(head, peft)
    return _read_linear(head)


def _read_linear(head: nn.Module) -> ReadableHead | str:
    if not isinstance(head, nn.Linear):
        return f"the head is a {type(head).__name__}"
    if type(head).forward is not nn.Linear.forward:
        return f"the head is a {type(head).__name__} with a forward of its own"
    if "forward" in head.__dict__ and not hasattr(head, "_hf_hook"):
        return "the head's forward is patched"
    return ReadableHead(head, head)


def _read_saved_copy(wrapper: Any) -> ReadableHead | str:
    active = [name for name in wrapper.active_adapters if name in wrapper.modules_to_save]
    if wrapper.disable_adapters or not active:
        return read_head(wrapper.original_module)
    if len(active) > 1:
        return "several saved copies of the head are active"
    return read_head(wrapper.modules_to_save[active[0]])


def _read_adapter(layer: Any, peft: Any) -> ReadableHead | str:
    base = _read_linear(layer.base_layer)
    if isinstance(base, str):
        return base
    if type(layer) is not peft.tuners.lora.Linear:
        return f"the head has a {type(layer).__module__.split('.')[-2]} adapter"
    if layer.disable_adapters:
        return "the head's merged adapter is disabled" if layer.merged else ReadableHead(layer, base.linear)
    if layer.merged:
        return ReadableHead(layer, base.linear)
    adapters = tuple(name for name in layer.active_adapters if name in layer.lora_A)
    variants = getattr(layer, "lora_variant", {})
    for name in adapters:
        if name in variants or getattr(layer, "use_dora", {}).get(name):
            return "the head has a LoRA variant (DoRA or the like)"
        if layer.lora_B[name].bias is not None:
            return "the head has LoRA with a bias"
    return ReadableHead(layer, base.linear, adapters)


def call_inside(module: nn.Module, function: Callable[..., Result], *args: Any) -> Result:
    """Run `function` as the forward of `module`, so that the module's hooks fire around it.

    That is how FSDP2, ZeRO-3 and offloading gather a weight and reduce its gradient. Reading a
    sharded weight instead gives the right loss and a wrong gradient where the head is a group of its own.
    """
    # accelerate's hook stands in `forward` and calls `_old_forward`.
    name = "_old_forward" if hasattr(module, "_hf_hook") else "forward"
    before = module.__dict__.get(name)
    module.__dict__[name] = function
    try:
        result: Result = module(*args)
    finally:
        if before is None:
            del module.__dict__[name]
        else:
            module.__dict__[name] = before
    return result


def head_slots(model: nn.Module, head: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return every (parent, name) under which `head` is registered in `model`."""
    return [(parent, name) for parent in model.modules() for name, child in parent._modules.items() if child is head]
