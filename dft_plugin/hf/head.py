"""Where a model's head is, and whether its weight can be read.

Shapes: T scored tokens, D hidden size, V vocabulary, R LoRA rank.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dft_plugin.hf.called import Door
from dft_plugin.kernels import Head, LowRank, Transform


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

    @property
    def trained(self) -> bool:
        """Whether weight, bias or a LoRA branch of it gets a gradient."""
        return bool(self.adapters) or any(p.requires_grad for p in self.linear.parameters())

    def head(self, hidden_TD: Tensor, transform: Transform) -> Head | str:
        """Read the head inside `owner`'s forward, or say why its weight is not a whole plain tensor."""
        reason = _unreadable(self.linear.weight)
        if reason is not None:
            return reason
        return Head(self.linear.weight, self.linear.bias, transform, self._low_rank(hidden_TD))

    def _low_rank(self, hidden_TD: Tensor) -> LowRank | None:
        lora: Any = self.owner
        inputs, weights = [], []
        for name in self.adapters:
            down, up = lora.lora_A[name], lora.lora_B[name]
            dropped_TD = lora.lora_dropout[name](hidden_TD.to(down.weight.dtype))
            inputs.append(down(dropped_TD) * lora.scaling[name])
            weights.append(up.weight)
        return LowRank(torch.cat(inputs, 1), torch.cat(weights, 1)) if inputs else None


def find_door(head: nn.Module) -> Door:
    """Return how a head that is registered in a model is entered."""
    wrappers: list[nn.Module] = []
    while True:
        inside = _inside(head)
        if inside is None:
            return Door(head, tuple(wrappers))
        # The modules that torch.compile makes are passed by: what is inside is called as it is.
        if not hasattr(head, "_orig_mod"):
            wrappers.append(head)
        head = inside


def _inside(module: nn.Module) -> nn.Module | None:
    """Return the module to which this one hands its call, if that is all it does."""
    for name in ("_orig_mod", "_fsdp_wrapped_module"):
        if name in module._modules:
            return module._modules[name]
    peft = sys.modules.get("peft")
    if peft is None or _class_of(module) is not peft.utils.other.ModulesToSaveWrapper:
        return None
    wrapper: Any = module
    active = [name for name in wrapper.active_adapters if name in wrapper.modules_to_save]
    if wrapper.disable_adapters or not active:
        return wrapper.original_module  # type: ignore[no-any-return]
    return wrapper.modules_to_save[active[0]] if len(active) == 1 else None


def read_head(door: Door) -> ReadableHead | str:
    """Find out whether a head can be read.

    Readable are `nn.Linear`, its copy in PEFT's `modules_to_save`, and plain LoRA on it.
    Everything else has a forward of its own, which must be called.

    Returns:
        The readable head, or the reason why it can only be called.
    """
    if door.has_hooks:
        return "the head has hooks, which see its logits"
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(door.owner, peft.tuners.tuners_utils.BaseTunerLayer):
        return _read_adapter(door.owner, peft)
    return _read_linear(door.owner)


def look_at(door: Door) -> ReadableHead | str:
    """Say beforehand what `read_head` and `ReadableHead.head` will say when the head is used."""
    reading = read_head(door)
    if isinstance(reading, str):
        return reading
    weight = reading.linear.weight
    # A weight that is sharded or offloaded is fetched by then; one that is split over tensor-parallel ranks is not.
    fetched = hasattr(weight, "ds_id") or weight.dim() != 2 or hasattr(door.owner, "_hf_hook")
    return reading if fetched else _unreadable(weight) or reading


def _unreadable(weight_VD: Tensor) -> str | None:
    if type(weight_VD) not in (Tensor, nn.Parameter):
        return f"the head's weight is a {type(weight_VD).__name__}"
    if not weight_VD.is_floating_point() or weight_VD.dtype.itemsize < 2:
        return f"the head's weight is quantised ({weight_VD.dtype})"
    if weight_VD.dim() != 2 or not weight_VD.numel() or weight_VD.device.type == "meta":
        return "the head's weight is not here as a whole"
    return None


def _read_linear(head: nn.Module) -> ReadableHead | str:
    if not isinstance(head, nn.Linear):
        return f"the head is a {_class_of(head).__name__}"
    if type(head).forward is not nn.Linear.forward:
        return f"the head is a {_class_of(head).__name__} with a forward of its own"
    if "forward" in head.__dict__ and not hasattr(head, "_hf_hook"):
        return "the head's forward is patched"
    return ReadableHead(head, head)


def _read_adapter(layer: Any, peft: Any) -> ReadableHead | str:
    base = _read_linear(layer.base_layer)
    if isinstance(base, str):
        return base
    if find_door(layer.base_layer).has_hooks:
        return "the head has hooks, which see its logits"
    if _class_of(layer) is not peft.tuners.lora.Linear:
        return f"the head has a {_class_of(layer).__module__.split('.')[-2]} adapter"
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


def _class_of(module: nn.Module) -> type:
    """The class of a module before FSDP2 put one of its own in that place."""
    return next(cls for cls in type(module).__mro__ if not cls.__name__.startswith("FSDP"))


def vocab_size_of(model: Any, door: Door) -> int:
    """Return the number of logits that a head makes, whoever holds its rows."""
    owner = door.owner
    size = getattr(owner, "out_features", None) or getattr(getattr(owner, "base_layer", None), "out_features", None)
    return int(size or model.config.get_text_config().vocab_size)


def head_slots(model: nn.Module, head: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return every (parent, name) under which `head` is registered in `model`."""
    # In every pass, over thousands of modules where there are adapters: `Module.modules` takes ten times as long.
    found, seen, left = [], {model}, [model]
    while left:
        parent = left.pop()
        for name, child in parent._modules.items():
            if child is head:
                found.append((parent, name))
            elif child is not None and child not in seen:
                seen.add(child)
                left.append(child)
    return found
