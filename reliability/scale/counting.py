"""Every collective of a process, whoever starts it: Python, DTensor, or the C++ of DDP's reducer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_KINDS = {
    "allreduce": "all-reduce",
    "all_reduce": "all-reduce",
    "allgather": "all-gather",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "broadcast": "broadcast",
    "alltoall": "all-to-all",
    "all_to_all": "all-to-all",
    "barrier": "barrier",
    "gather": "gather",
    "scatter": "scatter",
    "reduce": "reduce",
    "send": "send",
    "recv": "receive",
}
"""What an operation's name begins with, and what it is; the first that fits."""


class Collective(NamedTuple):
    """One collective.

    Attributes:
        kind: e.g. `all-reduce`.
        size: bytes of what is reduced, of the whole that is gathered, or of the whole that is scattered.
    """

    kind: str
    size: int

    def sent(self, ranks: int) -> float:
        """Return the bytes that one of the ranks sends, by the algorithm that sends least (a ring)."""
        passes = 2 if self.kind == "all-reduce" else 1
        return passes * (ranks - 1) / ranks * self.size


class Collectives(TorchDispatchMode):
    """Notes each collective while it is entered.

    torch sends them all through its dispatcher, those that DDP's reducer starts in C++ too. A CPU's backward pass runs
    in the thread that asked for it, so a mode of that thread sees them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Collective] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the call, and make it."""
        if "c10d" in func.namespace:
            kind = kind_of(func.overloadpacket.__name__)
            if kind is not None:
                self.seen.append(Collective(kind, _whole(func, args)))
        return func(*args, **(kwargs or {}))

    def take(self) -> list[Collective]:
        """Return what was seen since the last time."""
        seen, self.seen = self.seen, []
        return seen


def kind_of(name: str) -> str | None:
    """Return the kind of an operation; None for what only waits for another, or wraps a tensor."""
    bare = name.strip("_")
    return next((kind for begin, kind in _KINDS.items() if bare.startswith(begin)), None)


def _whole(func: Any, args: Any) -> int:
    """Return the bytes of the largest argument: input or output, whichever is whole."""
    size = max((sum(one.nbytes for one in tensors(arg)) for arg in args), default=0)
    if "functional" in func.namespace and "all_gather" in func.overloadpacket.__name__:
        # (input, number of ranks, group): what comes back is the whole.
        return size * int(args[1])
    return size


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        for one in value:
            yield from tensors(one)
