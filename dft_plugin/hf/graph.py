"""What a tensor was computed from, read off autograd's graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor


def leaves(tensor: Tensor, known: Iterable[Any] = ()) -> Iterator[Tensor]:
    """Yield the leaves that get a gradient through a tensor.

    Args:
        tensor: with a graph, or without: then there are none.
        known: nodes that are not looked behind.
    """
    for node in _nodes(tensor, known):
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            yield leaf


def reaches_behind(tensor: Tensor, start: Tensor, known: Iterable[Any] = ()) -> bool:
    """Whether a tensor was computed from a graph that is older than `start`, which is the result of an operation."""
    begin = start.grad_fn._sequence_nr() if start.grad_fn is not None else 0
    nodes = (node for node in _nodes(tensor, known) if not hasattr(node, "variable"))
    return any(node._sequence_nr() < begin for node in nodes)


def is_compiled(tensor: Tensor) -> bool:
    """Whether a compiled region made a tensor, or what it was made from."""
    return any("CompiledFunction" in node.name() for node in _nodes(tensor, ()))


def _nodes(tensor: Tensor, known: Iterable[Any]) -> Iterator[Any]:
    waiting, seen = [tensor.grad_fn], set[Any](known)
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [following for following, _ in node.next_functions]
