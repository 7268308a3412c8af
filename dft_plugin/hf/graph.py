"""What a tensor was computed from, read off autograd's graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

Steps = tuple[torch.dtype, torch.Size, tuple[tuple[str, float | None], ...]]
"""What made a tensor from a leaf, see `by_numbers`."""

_FACTORS = ("MulBackward0", "DivBackward0")
_OF_NOTHING_ELSE = ("CloneBackward0", "TanhBackward0")


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


def is_sum_with(tensor: Tensor, part: Any) -> bool:
    """Whether a tensor is a sum in which another stands once, by itself, and none of the other terms is made of it.

    Args:
        tensor: the sum.
        part: the node that made the other one.
    """
    waiting, others, times = [tensor.grad_fn], list[Any](), 0
    while waiting:
        node: Any = waiting.pop()
        if node is part:
            times += 1
        elif node is not None and node.name() == "AddBackward0" and node._saved_alpha == 1:
            waiting += [following for following, _ in node.next_functions]
        else:
            others.append(node)
    # What is older was not made of it, and need not be looked behind: a router's loss has the whole model there.
    older = {part}
    while others:
        node = others.pop()
        if node is part:
            return False
        if node is None or node in older or hasattr(node, "variable") or node._sequence_nr() < part._sequence_nr():
            continue
        older.add(node)
        others += [following for following, _ in node.next_functions]
    return times == 1


_STRAIGHT = frozenset(
    {"AddBackward0", "SubBackward0", "NegBackward0", "SumBackward0", "MeanBackward0", "StackBackward0", "CatBackward0"}
    | {"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0", "CloneBackward0"}
    | {"ToCopyBackward0", "ExpandBackward0", "UnsqueezeBackward0", "SqueezeBackward0", "SqueezeBackward1"}
    | {"SelectBackward0", "SliceBackward0", "CopySlices", "CompiledFunctionBackward", *_FACTORS}
)
"""Nodes of autograd whose values are straight lines in what they are made from, or cannot be looked into."""


def bend_in(tensor: Tensor, part: Any) -> str | None:
    """Name what makes a tensor more than a line in another, from which it was computed; None: nothing does.

    Args:
        tensor: with a graph.
        part: the node that made the other one.
    """
    reaches: dict[Any, bool] = {None: False, part: True}
    waiting = [tensor.grad_fn]
    while waiting:
        node: Any = waiting[-1]
        if node is None or node in reaches or hasattr(node, "variable") or node._sequence_nr() < part._sequence_nr():
            reaches.setdefault(node, False)
            waiting.pop()
            continue
        before = [following for following, _ in node.next_functions]
        unknown = [following for following in before if following not in reaches]
        if unknown:
            waiting += unknown
            continue
        through = [reaches[following] for following in before]
        reaches[node] = any(through)
        squared = (node.name() in _FACTORS and sum(through) > 1) or (node.name() == "DivBackward0" and through[-1])
        if any(through) and (squared or node.name() not in _STRAIGHT):
            return str(node.name())
    return None


_ALIKE = frozenset(
    {"NegBackward0", "TanhBackward0", "SigmoidBackward0", "PowBackward0", "NanToNumBackward0", "AbsBackward0"}
    | {"ClampBackward0", "ClampBackward1", "ClampMinBackward0", "ClampMaxBackward0", "AddBackward0", "SubBackward0"}
    | {"TransposeBackward0", "PermuteBackward0", "TBackward0", *_FACTORS}
    | {"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0", "CloneBackward0"}
    | {"ToCopyBackward0", "ExpandBackward0", "UnsqueezeBackward0", "SqueezeBackward0", "SqueezeBackward1"}
)
"""Nodes of autograd that do the same to a tensor wherever it stands."""


def tells_rows_apart(tensor: Tensor) -> str | None:
    """Name what may treat rows or positions of a tensor differently on the way to it; None: nothing that can be seen.

    Args:
        tensor: [B, S, V], with a graph that begins with one of as many dimensions.
    """
    for node in _nodes(tensor, ()):
        name = node.name()
        if hasattr(node, "variable") or not name[-1].isdigit() or (name in _ALIKE and not _by_place(node)):
            # What somebody has written a backward pass for, or compiled, cannot be looked into.
            continue
        if name != "SliceBackward0" or not _is_whole(node):
            return str(name)
    return None


def _by_place(node: Any) -> bool:
    """Whether a factor is another one for each row or position, or may be; torch 2.8 does not tell."""
    if node.name() not in _FACTORS:
        return False
    # Not unpacked: hooks that offload what is saved hand it out once. A factor may stand on either side.
    saved = [getattr(getattr(node, name, None), "data", None) for name in ("_raw_saved_self", "_raw_saved_other")]
    factors = [factor for factor in saved if factor is not None]
    return any(not isinstance(factor, Tensor) or factor.shape[:-1].numel() > 1 for factor in factors)


def _is_whole(node: Any) -> bool:
    """Whether a slice leaves rows and positions as they are; of columns it may take some."""
    sizes = node._saved_self_sym_sizes
    dim, start, end = map(_signed, (node._saved_dim, node._saved_start, node._saved_end))
    # `logits[:, -labels.shape[1]:]` takes all that there are, where there are as many.
    whole = (start == 0 or start <= -sizes[dim]) and end >= sizes[dim] and node._saved_step == 1
    return bool(whole or dim in (-1, len(sizes) - 1))


def _signed(number: int | None) -> int:
    """Return what autograd has kept without its sign."""
    number = number or 0
    return number - 2**64 if number >= 2**63 else number


def by_numbers(tensor: Tensor, leaf: Tensor) -> Steps | None:
    """Say how a tensor was computed from a leaf, if that took a few operations and numbers that Python gave.

    Tensors of which the same is said are the same function of their leaves. Nothing is asked of a device: autograd
    keeps such a number on the CPU, and as it is, whatever hooks take what it saves. A torch that does not show what it
    saved (2.8) tells none.

    Args:
        tensor: with a graph, or without.
        leaf: gets a gradient.

    Returns:
        Operations and numbers, from the tensor back to the leaf; None: it took more than these.
    """
    steps, node = list[tuple[str, float | None]](), tensor.grad_fn
    while node is not None and getattr(node, "variable", None) is not leaf:
        name, number = node.name(), None
        if name in _FACTORS:
            number = _number_of_python(getattr(node._raw_saved_other, "data", None))  # type: ignore[attr-defined]
        if number is None and name not in _OF_NOTHING_ELSE:
            return None
        steps.append((name, number))
        following = [behind for behind, _ in node.next_functions if behind is not None]
        node = following[0] if len(following) == 1 else None
    return None if node is None else (tensor.dtype, tensor.shape, tuple(steps))


def _number_of_python(saved: Any) -> float | None:
    """Return the number of which torch has made a tensor, as it does for an operation; None: it is another tensor."""
    if not isinstance(saved, Tensor) or saved.dim() or not saved.is_cpu:
        return None
    # Such a one gives way to another of its kind, whatever that one's precision.
    other = {torch.float64: torch.float32, torch.int64: torch.int32}.get(saved.dtype)
    if other is None or torch.result_type(saved, torch.empty((), dtype=other, device="cpu")) != other:
        return None
    # Not by an operator: modes that stand between would get the bare number.
    number: Any = saved.tolist()
    return float(number)


def is_compiled(tensor: Tensor) -> bool:
    """Whether a compiled region made a tensor, or what it was made from."""
    return any("CompiledFunction" in node.name() for node in _nodes(tensor, ()))


def made_of(tensor: Tensor, parts: Iterable[Any]) -> tuple[set[Any], list[Tensor]]:
    """Return which nodes a tensor was computed from, and which leaves beside them; nothing is looked behind the nodes.

    Args:
        tensor: with a graph.
        parts: the nodes that are looked for.
    """
    parts, reached, found = set(parts), set[Any](), list[Tensor]()
    waiting, seen = [(tensor.grad_fn, tensor.output_nr)], set[Any]()
    while waiting:
        node, number = waiting.pop()
        if node is None or (node, number) in seen:
            continue
        seen.add((node, number))
        leaf = getattr(node, "variable", None)
        if node in parts:
            reached.add(node)
        elif isinstance(leaf, Tensor):
            found.append(leaf)
        elif node.name() == "_DDPSinkBackward":
            # All that the model returns goes through it side by side.
            waiting.append(node.next_functions[number])
        else:
            waiting += node.next_functions
    return reached, found


def _nodes(tensor: Tensor, known: Iterable[Any]) -> Iterator[Any]:
    waiting, seen = [tensor.grad_fn], set[Any](known)
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [following for following, _ in node.next_functions]
