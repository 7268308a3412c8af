"""Which operations would wait for a device, if every tensor of this CPU were on one; and models to ask about.

Sources: torch's own list for `torch.cuda.set_sync_debug_mode`, and what it says that this misses.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dft_plugin.core import transfer
from support import attached, odd, own_losses, tiny

_NUMBER_OR_SHAPE_FROM_DATA = {
    f"aten::{name}"
    for name in (
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "equal",
        "allclose",
        "nonzero",
        "masked_select",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "bincount",
    )
}
_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
# By what Python calls: on a CPU these read memory, and no operator says so.
_TO_PYTHON = {Tensor.tolist: "tolist", Tensor.numpy: "numpy", Tensor.cpu: "cpu"}


@dataclass
class Waits:
    """What was seen.

    Attributes:
        seen: operations that wait, by name and the line that asked.
        fetched: copies to the CPU by `Fetched`.
        read: those that somebody has waited for.
    """

    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    fetched: int = 0
    read: int = 0


@contextmanager
def watching(*here: Tensor) -> Iterator[Waits]:
    """Watch all tensors as if they were on a device, but for those that `Fetched` gave and what is made of them.

    Args:
        here: tensors that are on the CPU in truth, too.
    """
    waits = Waits()
    # By id, and held, so that none is given to another tensor.
    on_cpu = {id(tensor): tensor for tensor in here}
    with _fetching(waits, on_cpu), _Operators(waits, on_cpu), _Calls(waits, on_cpu):
        yield waits


@contextmanager
def _fetching(waits: Waits, on_cpu: dict[int, Tensor]) -> Iterator[None]:
    """Note what goes to the CPU through `Fetched`, and comes back through `send`."""
    fetch, read, send = transfer.Fetched.__init__, transfer.Fetched.read, transfer.send
    done: dict[int, Any] = {}

    def fetch_and_count(self: Any, tensor: Tensor) -> None:
        waits.fetched += id(tensor) not in on_cpu
        fetch(self, tensor)
        if id(tensor) in on_cpu:
            done[id(self)] = self
            on_cpu[id(self._copy)] = self._copy

    def read_and_count(self: Any) -> Tensor:
        waits.read += id(self) not in done
        done[id(self)] = self
        copy = read(self)
        on_cpu[id(copy)] = copy
        return copy

    def send_back(tensor: Tensor, device: torch.device) -> Tensor:
        # Another tensor: on a CPU `send` returns the same.
        there = send(tensor, device).clone()
        on_cpu.pop(id(there), None)
        return there

    users = [module for name, module in sys.modules.items() if name.startswith("dft_") and hasattr(module, "send")]
    users = [module for module in users if module.send is send]
    transfer.Fetched.__init__, transfer.Fetched.read = fetch_and_count, read_and_count  # type: ignore[method-assign]
    for module in users:
        module.send = send_back
    try:
        yield
    finally:
        transfer.Fetched.__init__, transfer.Fetched.read = fetch, read  # type: ignore[method-assign]
        for module in users:
            module.send = send


class _Operators(TorchDispatchMode):
    def __init__(self, waits: Waits, on_cpu: dict[int, Tensor]) -> None:
        super().__init__()
        self.waits, self.on_cpu = waits, on_cpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_cpu = bool(given) and all(id(tensor) in self.on_cpu for tensor in given)
        if not on_cpu and (name in _NUMBER_OR_SHAPE_FROM_DATA or _waits(name, args, kwargs)):
            self.waits.seen[name, _place()] += 1
        returned = func(*args, **kwargs)
        if on_cpu:
            self.on_cpu.update((id(leaf), leaf) for leaf in tree_leaves(returned) if isinstance(leaf, Tensor))
        return returned


class _Calls(TorchFunctionMode):
    def __init__(self, waits: Waits, on_cpu: dict[int, Tensor]) -> None:
        super().__init__()
        self.waits, self.on_cpu = waits, on_cpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _TO_PYTHON.get(func) if callable(func) else None
        if func is Tensor.to and "cpu" in [where for where in (*args, *(kwargs or {}).values()) if type(where) is str]:
            name = "to cpu"
        # `Fetched` itself is counted where it is made.
        here = name is None or id(args[0]) in self.on_cpu or _is_number(args[0])
        if not here and "transfer.py" not in _place():
            self.waits.seen[name, _place()] += 1
        return func(*args, **(kwargs or {}))


def _waits(name: str, args: Any, kwargs: Any) -> bool:
    if name == "aten::repeat_interleave":
        return kwargs.get("output_size") is None
    if name not in _INDEXING:
        return False
    # A number that is written at indices is copied to the device from memory that is not pinned.
    number = len(args) > 2 and args[2].dim() == 0
    return number or any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])


def _is_number(tensor: Tensor) -> bool:
    """Whether torch has made it of a number that Python gave: such a one stays on the CPU, and gives way to others."""
    other = {torch.float64: torch.float32, torch.int64: torch.int32}.get(tensor.dtype)
    return other is not None and not tensor.dim() and torch.result_type(tensor, torch.empty((), dtype=other)) == other


def _place() -> str:
    frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
    frames = [frame for frame in frames if not frame.filename.endswith("support/waits.py")]
    return f"{frames[-1].filename.split('/')[-1]}:{frames[-1].lineno}"


class OwnShift(odd.Odd):
    """Shifts its labels by itself, and hands on what it has made of them."""

    def finish(self, logits: Tensor, labels: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Shift."""
        shifted = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:].contiguous()
        return super().finish(logits, labels, {**kwargs, "shift_labels": shifted})


class ByColumn(odd.Odd):
    """Does more to its logits than to scale and cap them."""

    def odd(self, logits: Tensor, hidden_BSD: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Add another number in each column."""
        return logits + torch.linspace(-1, 1, logits.shape[-1], device=logits.device)


class ByTensor(odd.Odd):
    """Scales its logits by a number that is on the device."""

    def odd(self, logits: Tensor, hidden_BSD: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Scale."""
        return logits * torch.full((), 0.5, device=logits.device)


def _adapted(config: str, **how: Any) -> Any:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(tiny.llama(), getattr(peft, config)(task_type="CAUSAL_LM", **how))


def _hooked() -> Any:
    model = tiny.llama()
    model.lm_head.register_forward_hook(lambda module, args, output: None)
    return model


def capped() -> Any:
    """Caps its logits by a number of its config."""
    return attached.build("gemma2", final_logit_softcapping=5.0)


@dataclass(frozen=True)
class Case:
    """A model, a loss, and what its steps may wait for beyond the stock model.

    Attributes:
        make: the model.
        loss: what is attached.
        fetched: copies to the CPU of a step.
        read: those that somebody waits for.
        training: whether it is trained.
        want_logits: as for `Attachment.answering`.
        counted: whether statistics are of some rows only.
        columns: what the data has for the loss.
        given: what a batch has besides, of which the labels' shape is known.
        splits: whether a step may have several parts, so that somebody else counts it.
    """

    make: Callable[[], Any]
    loss: Any = "dft"
    fetched: int = 1
    read: int = 1
    training: bool = True
    want_logits: bool | None = None
    counted: bool = False
    columns: tuple[str, ...] = ()
    given: Callable[[Any], dict[str, Tensor]] = lambda batch: {}
    splits: bool = True


SHOWN = hasattr(torch._C._autograd.SavedTensor, "data")
"""Whether this torch shows what an operation has saved: 2.13 does, 2.8 does not."""

_by_number = Case if SHOWN else partial(Case, fetched=2, read=2)
"""A scale or a cap by a number of Python's: the graph tells it."""

_IN_CHUNKS = {"name": "dft", "kernel": "chunked"}
"""What `auto` takes on an accelerator, for a frozen head too."""

CASES = {
    # The labels, which go ahead.
    "plain": Case(tiny.llama),
    "MoE": Case(tiny.mixtral),
    "kernel: logits": Case(tiny.llama, {"name": "dft", "kernel": "logits"}),
    "MoE, kernel: logits": Case(tiny.mixtral, {"name": "dft", "kernel": "logits"}),
    "logits path": Case(lambda: odd.build(ByColumn)),
    "called head": Case(_hooked),
    "LoRA": Case(lambda: _adapted("LoraConfig", r=4, target_modules=["q_proj"]), _IN_CHUNKS),
    "LoRA on the head": Case(lambda: _adapted("LoraConfig", r=4, target_modules=["q_proj", "lm_head"]), _IN_CHUNKS),
    "DoRA on the head": Case(lambda: _adapted("LoraConfig", r=4, target_modules=["lm_head"], use_dora=True)),
    # It makes the labels longer before the model that we are attached to is called.
    "prompt tuning": Case(lambda: _adapted("PromptTuningConfig", num_virtual_tokens=4), _IN_CHUNKS),
    "loss of its own": Case(lambda: odd.build(own_losses.WithoutPadding)),
    "evaluation": Case(tiny.llama, training=False, counted=True),
    "evaluation without logits": Case(tiny.llama, _IN_CHUNKS, training=False, want_logits=False, counted=True),
    "MoE, evaluation without logits": Case(tiny.mixtral, _IN_CHUNKS, training=False, want_logits=False),
    "softcap": _by_number(capped),
    "scale": _by_number(lambda: attached.build("granite", logits_scaling=8.0)),
    # The labels, and what the model did to its logits, which is read behind the kernel: no graph tells it.
    "softcap, evaluation without logits": Case(
        capped,
        training=False,
        want_logits=False,
        fetched=2,
        read=2,
    ),
    "scale by a tensor": Case(lambda: odd.build(ByTensor), fetched=2, read=2),
    # Labels that went ahead, for which nobody waits, and those that the model made of them.
    "shifts by itself": Case(lambda: odd.build(OwnShift), fetched=2, read=1),
}
