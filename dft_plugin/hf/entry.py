"""How to work inside a head's forward: its weight is gathered once, whatever shards or offloads it.

Shapes: T scored tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dft_plugin.core.loss import LossResult
from dft_plugin.errors import UnsupportedModelError
from dft_plugin.hf.called import CalledHead, Door, gathers, standing_for, with_hooks


@torch.compiler.disable  # type: ignore[untyped-decorator]
def enter(door: Door, score: Callable[[Tensor, CalledHead], LossResult], hidden_TD: Tensor) -> LossResult:
    """Run `score` as the head's forward, so that what gathers its weight does so once, and reduces its gradient.

    FSDP, ZeRO and offloading work around the forward of a module. Reading a sharded weight instead gives the right
    loss and a wrong gradient where the head is a group of its own; calling the head for each chunk hangs where the
    ranks have different numbers of tokens.

    One tensor goes in and one comes out, as in any forward. All else travels beside it, the value of the loss too:
    a policy may cast what leaves a module to bfloat16.

    Args:
        door: the head.
        score: gets the hidden states as they arrive in the head's forward, and what makes logits of them there.
        hidden_TD: hidden states.

    Raises:
        UnsupportedModelError: parts of the head are sharded by themselves, or are trained and offloaded.
    """
    _require_whole(door.owner)
    _require_kept(door.owner)
    called = CalledHead(door)
    results: list[LossResult] = []
    beside = _Beside()

    def forward(arrived_TD: Tensor) -> Tensor:
        result = score(arrived_TD, called)
        results.append(result)
        carrier: Tensor = _Leave.apply(result.loss_sum, beside)  # type: ignore[no-untyped-call]
        return carrier

    with ExitStack() as stack:
        stack.enter_context(standing_for(door.owner, called.name, forward))
        for module in (*door.wrappers, door.owner):
            stack.enter_context(with_hooks(module, called.hooks[module], gathers))
        carrier = door.entry(hidden_TD)
    (result,) = results
    loss_sum: Tensor = _Arrive.apply(carrier, result.loss_sum.detach(), beside)  # type: ignore[no-untyped-call]
    return replace(result, scored=replace(result.scored, loss_sum=loss_sum))


def _require_whole(owner: nn.Module) -> None:
    for module in owner.modules():
        if module is not owner and _shards_itself(module):
            raise UnsupportedModelError(
                f"the head is a {type(owner).__name__} whose parts are sharded by themselves "
                f"({type(module).__name__}), so its weight is never whole. Wrap the head as one module (not its LoRA "
                "leaves), or leave it out of LoRA's target_modules."
            )


def _require_kept(owner: nn.Module) -> None:
    """Refuse a head whose gradient accelerate would throw away, with the copy of the weight that it makes."""
    if not torch.is_grad_enabled():
        return
    for name, module in owner.named_modules():
        trained = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if trained and _offloads(module):
            raise UnsupportedModelError(
                f"the head ({type(owner).__name__}{name and f', its part {name}'}) is offloaded by accelerate and "
                "trained: each pass works on a copy of its weight, and the gradient is lost with the copy, whatever "
                "the loss. Freeze it (requires_grad_(False)), or keep it on a device: in device_map, give the head "
                "and what it is tied to one of the GPUs."
            )


def _offloads(module: nn.Module) -> bool:
    hook = getattr(module, "_hf_hook", None)
    # accelerate's SequentialHook holds several.
    return any(getattr(one, "offload", False) for one in getattr(hook, "hooks", (hook,)))


def _shards_itself(module: nn.Module) -> bool:
    return any(cls.__name__ in ("FSDPModule", "FullyShardedDataParallel") for cls in type(module).__mro__)


class _Beside:
    """The upstream gradient of the loss, on its way around the module's output."""

    upstream: Tensor | None = None


class _Leave(torch.autograd.Function):
    """The tensor that leaves the head's forward in the place of the loss."""

    @staticmethod
    def forward(ctx: Any, loss_sum: Tensor, beside: _Beside) -> Tensor:
        ctx.beside = beside
        return loss_sum.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor | None, None]:
        return ctx.beside.upstream, None


class _Arrive(torch.autograd.Function):
    """The loss again, outside; its gradient takes the same way back."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, loss_sum: Tensor, beside: _Beside) -> Tensor:
        ctx.beside, ctx.like = beside, (carrier.dtype, carrier.device)
        return loss_sum.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        ctx.beside.upstream = upstream
        dtype, device = ctx.like
        return torch.ones((), dtype=dtype, device=device), None, None
