"""How to work inside a head's forward: its weight is gathered once, whatever shards or offloads it.

Shapes: T scored tokens, D hidden size.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from dft_plugin.core.loss import LossResult
from dft_plugin.errors import UnsupportedModelError

_GATHER = ("torch.distributed.fsdp", "torch.distributed._composable", "deepspeed", "accelerate")
"""Modules whose hooks fetch and free a weight. They fire once, around everything; any other hook has its say on each
chunk of logits."""

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Door:
    """Where a head is entered.

    Attributes:
        owner: the module whose forward makes the logits.
        wrappers: what is called on the way there, outermost first (FSDP, the copy in PEFT's `modules_to_save`).
    """

    owner: nn.Module
    wrappers: tuple[nn.Module, ...] = field(default=())

    @property
    def entry(self) -> nn.Module:
        """What the model calls."""
        return self.wrappers[0] if self.wrappers else self.owner

    @property
    def has_hooks(self) -> bool:
        """Whether a hook may look at, or change, what goes into or comes out of the head."""
        modules = (*self.wrappers, self.owner)
        return any(
            not _gathers(hook) for module in modules for name in _HOOKS for hook in getattr(module, name).values()
        )


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
        UnsupportedModelError: parts of the head are sharded by themselves.
    """
    _require_whole(door.owner)
    called = CalledHead(door)
    results: list[LossResult] = []
    beside = _Beside()

    def forward(arrived_TD: Tensor) -> Tensor:
        result = score(arrived_TD, called)
        results.append(result)
        carrier: Tensor = _Leave.apply(result.loss_sum, beside)  # type: ignore[no-untyped-call]
        return carrier

    with ExitStack() as stack:
        stack.enter_context(_standing(door.owner, called.name, forward))
        for module in (*door.wrappers, door.owner):
            stack.enter_context(_with_hooks(module, called.hooks[module], _gathers))
        carrier = door.entry(hidden_TD)
    (result,) = results
    loss_sum: Tensor = _Arrive.apply(carrier, result.loss_sum.detach(), beside)  # type: ignore[no-untyped-call]
    return replace(result, loss_sum=loss_sum)


class CalledHead:
    """The head as the model calls it, but for the hooks that gather: used inside, where its weight is whole.

    Attributes:
        owner: the module that makes the logits.
    """

    def __init__(self, door: Door) -> None:
        self.door, self.owner = door, door.owner
        # accelerate's hook stands in `forward` and calls `_old_forward`.
        self.name = "_old_forward" if hasattr(door.owner, "_hf_hook") else "forward"
        self.forward = door.owner.__dict__.get(self.name)
        modules = (*door.wrappers, *door.owner.modules())
        self.hooks = {module: {name: getattr(module, name) for name in _HOOKS} for module in modules}

    def __call__(self, hidden_TD: Tensor) -> Tensor:
        """Make logits [T, V] of hidden states [T, D]."""
        with ExitStack() as stack:
            stack.enter_context(_standing(self.door.owner, self.name, self.forward))
            for module in self.door.owner.modules():
                stack.enter_context(_with_hooks(module, self.hooks[module], _sees_logits))
            for wrapper in self.door.wrappers:
                hidden_TD = self._before(wrapper, hidden_TD)
            logits_TV: Tensor = self._call_owner(hidden_TD)
            for wrapper in reversed(self.door.wrappers):
                logits_TV = self._after(wrapper, hidden_TD, logits_TV)
        return logits_TV

    @property
    def row_multiple(self) -> int:
        """Of how many rows its GEMM wants a multiple; 16 for float8."""
        float8 = any(part.dtype.itemsize == 1 and part.is_floating_point() for part in self.owner.parameters())
        return 16 if float8 or "float8" in type(self.owner).__module__ else 1

    def gather(self) -> None:
        """Have the weights of what is inside the head, too.

        ZeRO-3 gathers a parameter that is read inside a module's forward, and counts it as the module's own from then
        on, in backward too. The hooks of the modules inside, which it would fetch them by, do not run here.
        """
        for module in self.owner.modules():
            for name, parameter in module._parameters.items():
                if hasattr(parameter, "ds_id"):
                    getattr(module, name)

    def _call_owner(self, hidden_TD: Tensor) -> Tensor:
        owner = self.door.owner
        if self.name == "forward":
            return owner(hidden_TD)  # type: ignore[no-any-return]
        # Past accelerate's hook, which has fetched the weight already and would let go of it.
        with _standing(owner, "forward", getattr(owner, self.name)):
            return owner(hidden_TD)  # type: ignore[no-any-return]

    def _before(self, wrapper: nn.Module, hidden_TD: Tensor) -> Tensor:
        for key, hook in self.hooks[wrapper]["_forward_pre_hooks"].items():
            if _gathers(hook):
                continue
            if key in wrapper._forward_pre_hooks_with_kwargs:
                given: Any = hook(wrapper, (hidden_TD,), {})
                given = given[0] if given is not None else None
            else:
                given = hook(wrapper, (hidden_TD,))
            if given is not None:
                hidden_TD = given[0] if isinstance(given, tuple) else given
        return hidden_TD

    def _after(self, wrapper: nn.Module, hidden_TD: Tensor, logits_TV: Tensor) -> Tensor:
        for key, hook in self.hooks[wrapper]["_forward_hooks"].items():
            if _gathers(hook):
                continue
            keywords = ({},) if key in wrapper._forward_hooks_with_kwargs else ()
            given: Any = hook(wrapper, (hidden_TD,), *keywords, logits_TV)
            logits_TV = logits_TV if given is None else given
        return logits_TV


def _gathers(hook: Any) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return home.startswith(_GATHER)


def _sees_logits(hook: Any) -> bool:
    return not _gathers(hook)


@contextmanager
def _with_hooks(module: nn.Module, hooks: dict[str, Any], keep: Callable[[Any], bool]) -> Iterator[None]:
    """Let a module have only some of its hooks for a while."""
    before = {name: getattr(module, name) for name in _HOOKS}
    for name, all_of_them in hooks.items():
        if all_of_them:
            module.__dict__[name] = OrderedDict((key, hook) for key, hook in all_of_them.items() if keep(hook))
    try:
        yield
    finally:
        module.__dict__.update(before)


@contextmanager
def _standing(owner: nn.Module, name: str, function: Any) -> Iterator[None]:
    """Put a function where the module's forward is looked up; None stands for that of its class."""
    before = owner.__dict__.get(name)
    _put(owner, name, function)
    try:
        yield
    finally:
        _put(owner, name, before)


def _put(owner: nn.Module, name: str, function: Any) -> None:
    if function is None:
        owner.__dict__.pop(name, None)
    else:
        owner.__dict__[name] = function


def _require_whole(owner: nn.Module) -> None:
    for module in owner.modules():
        if module is not owner and _shards_itself(module):
            raise UnsupportedModelError(
                f"the head is a {type(owner).__name__} whose parts are sharded by themselves "
                f"({type(module).__name__}), so its weight is never whole. Wrap the head as one module (not its LoRA "
                "leaves), or leave it out of LoRA's target_modules."
            )


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
