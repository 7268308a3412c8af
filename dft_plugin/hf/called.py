"""A head as the model calls it, and the hooks around it.

Shapes: T scored tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dft_plugin.hf import graph

_GATHER = ("torch.distributed.fsdp", "torch.distributed._composable", "deepspeed", "accelerate")
"""Modules whose hooks fetch and free a weight. They fire once, around everything; any other hook has its say on each
chunk of logits."""

_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", *_BACKWARD_HOOKS)


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
        return self._hooked(_HOOKS)

    @property
    def hears_gradients(self) -> bool:
        """Whether a backward hook gets the gradients of hidden states or logits: those of the whole loss, divided."""
        return self._hooked(_BACKWARD_HOOKS)

    def _hooked(self, names: tuple[str, ...]) -> bool:
        modules = (*self.wrappers, *self.owner.modules())
        return any(
            not gathers(hook) for module in modules for name in names for hook in getattr(module, name).values()
        )


_SLOPE = 5e-2
"""Relative tolerance of a gradient, which may be rounded to half precision."""


class MixedHeadError(Exception):
    """A head whose logits cannot be made of a chunk of tokens; carries the reason."""


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
        call: Callable[[Tensor], Tensor] = self._call_owner
        for wrapper in reversed(self.door.wrappers):
            call = functools.partial(self._call_through, wrapper, call)
        with ExitStack() as stack:
            stack.enter_context(standing_for(self.owner, self.name, self.forward))
            for module in self.owner.modules():
                stack.enter_context(with_hooks(module, self.hooks[module], _sees_logits))
            return call(hidden_TD)

    def trained_elsewhere(self, hidden_TD: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors that get a gradient through the logits and are no parameters of the head.

        Raises:
            MixedHeadError: the logits of a position depend on more than its hidden state.
        """
        start_D = hidden_TD[:1].detach().requires_grad_()
        rows_TD = start_D * 1
        with _HookedTensors() as hooked:
            logits_TV = self._filled_up(rows_TD)
        if hooked.names:
            raise MixedHeadError(f"a hook on a tensor in its head ({hooked.names[0]}) changes gradients")
        # FSDP1 makes parameters of views; what they are views of is not elsewhere.
        known = {parameter.grad_fn for parameter in self.owner.parameters()}
        if graph.reaches_behind(logits_TV, rows_TD, known):
            raise MixedHeadError("its head computes with what an earlier part of the model made")
        own = {id(parameter) for parameter in (*self.owner.parameters(), start_D)}
        return tuple({id(leaf): leaf for leaf in graph.leaves(logits_TV, known) if id(leaf) not in own}.values())

    def require_linear(self, hidden_TD: Tensor) -> None:
        """Check that gradients on their way back through the head are multiplied, and nothing else.

        They are made before it is known by what the loss is divided.

        Raises:
            MixedHeadError: they are clamped, say, or normalised.
        """
        if self.row_multiple > 1:
            # In float8 the size of a gradient says which of its digits are left.
            return
        dtypes = {hidden_TD.dtype, *(parameter.dtype for parameter in self.owner.parameters())}
        kind = hidden_TD.device.type
        if torch.is_autocast_enabled(kind):
            dtypes.add(torch.get_autocast_dtype(kind))
        # What is quantised may compute in float16, too.
        narrow = any(dtype is torch.float16 or dtype.itemsize == 1 for dtype in dtypes)
        far = 2.0 ** (8 if narrow else 30)
        small, large = self._gradient(hidden_TD, 1 / far), self._gradient(hidden_TD, far)
        if not torch.allclose(small, large, rtol=_SLOPE, atol=_SLOPE * float(small.abs().amax())):
            raise MixedHeadError("what its head does to gradients depends on how large they are")

    def _gradient(self, hidden_TD: Tensor, factor: float) -> Tensor:
        """Return what comes back to a hidden state for gradients of the logits that are multiplied, divided again."""
        start_D = hidden_TD[:1].detach().requires_grad_()
        logits_TV = self._filled_up(start_D)
        if not logits_TV.requires_grad:
            return torch.zeros_like(start_D, dtype=torch.float32)
        upstream_TV = torch.linspace(-1, 1, logits_TV.numel(), device=logits_TV.device).view_as(logits_TV) * factor
        (gradient,) = torch.autograd.grad(
            logits_TV, start_D, upstream_TV.to(logits_TV.dtype), allow_unused=True, materialize_grads=True
        )
        return gradient.float() / factor

    def _filled_up(self, rows_TD: Tensor) -> Tensor:
        missing = -rows_TD.shape[0] % self.row_multiple
        return self(torch.cat([rows_TD, rows_TD.new_zeros(missing, rows_TD.shape[1])]))

    def require_rows_apart(self, hidden_TD: Tensor) -> None:
        """Check that the logits of a position depend on its own hidden state alone, in any company.

        Raises:
            MixedHeadError: they do not, or the head cannot be called with few rows.
        """
        more = 4 * self.row_multiple
        some = slice(1, 1 + more // 2)
        try:
            together_TV = self(hidden_TD[:more])
            apart_TV = self(hidden_TD[some])
        except (RuntimeError, ValueError, IndexError) as error:
            raise MixedHeadError(f"its head takes no rows of tokens ({type(error).__name__}: {error})") from error
        if apart_TV.dim() != 2 or together_TV.shape[0] != more:
            raise MixedHeadError(f"its head makes logits of shape {tuple(apart_TV.shape)} from rows of tokens")
        near = 5e-2 if apart_TV.dtype.itemsize < 4 or hidden_TD.dtype.itemsize < 4 else 1e-4
        if not torch.allclose(apart_TV, together_TV[some], rtol=near, atol=near):
            raise MixedHeadError("its head mixes positions")

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
        if self.name == "forward":
            return self.owner(hidden_TD)  # type: ignore[no-any-return]
        # Past accelerate's hook, which has fetched the weight already and would let go of it.
        with standing_for(self.owner, "forward", getattr(self.owner, self.name)):
            return self.owner(hidden_TD)  # type: ignore[no-any-return]

    def _call_through(self, wrapper: nn.Module, inner: Callable[[Tensor], Tensor], hidden_TD: Tensor) -> Tensor:
        """Call what is inside a wrapper as if by the wrapper, for the hooks that stand on it."""
        with standing_for(wrapper, "forward", inner), with_hooks(wrapper, self.hooks[wrapper], _sees_logits):
            return wrapper(hidden_TD)  # type: ignore[no-any-return]


class _HookedTensors(TorchFunctionMode):
    """Notes which hooks are put on tensors meanwhile: autograd's graph does not tell afterwards.

    Attributes:
        names: of the hooks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.register_hook:
            self.names.append(getattr(args[1], "__qualname__", type(args[1]).__qualname__))
        return func(*args, **(kwargs or {}))


def gathers(hook: Any) -> bool:
    """Whether a hook fetches or frees a weight, and does nothing else."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return home.startswith(_GATHER)


def _sees_logits(hook: Any) -> bool:
    return not gathers(hook)


@contextmanager
def with_hooks(module: nn.Module, hooks: dict[str, Any], keep: Callable[[Any], bool]) -> Iterator[None]:
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
def standing_for(owner: nn.Module, name: str, function: Any) -> Iterator[None]:
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
