"""How a model's loss is computed, decided on the first batch and the same on all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dft_plugin.errors import UnsupportedModelError
from dft_plugin.hf import calibration, graph
from dft_plugin.hf.calibration import Reading
from dft_plugin.hf.called import Door
from dft_plugin.hf.graph import Steps
from dft_plugin.hf.head import vocab_size_of
from dft_plugin.hf.interception import HeadStandIn, Seen
from dft_plugin.kernels import IDENTITY, Transform


@dataclass(frozen=True)
class Route:
    """How this model's loss is computed.

    Attributes:
        path: `lean` (from hidden states, no logits are kept) or `logits` (from the logits that the model makes).
        transform: what the model did to raw logits in the last pass; used on the lean path.
        why_not_lean: the reason for the logits path, or for calling the head on chunks of tokens.
        vocab_size: number of logits per position.
        head: identity of the module that makes them.
        with_graph: whether a pass with a graph has been seen, which tells more.
        steady: whether the last pass did what the one before did.
        told: the steps that a model took to transform its logits, and the transform that its values told then.
    """

    path: str
    transform: Transform = IDENTITY
    why_not_lean: str | None = None
    vocab_size: int = 0
    head: int = 0
    with_graph: bool = False
    steady: bool = True
    told: tuple[Steps, Transform] | None = None

    def still_fits(self, model: nn.Module, door: Door) -> bool:
        """Whether the head is the one that was looked at, and of the same size."""
        return self.head == id(door.owner) and self.vocab_size == vocab_size_of(model, door)


@dataclass(frozen=True)
class NotLean:
    """Why a batch cannot be scored from hidden states.

    Attributes:
        reason: in words.
        final: whether it holds for later batches, too.
    """

    reason: str
    final: bool = True


def judge(model: nn.Module, stand_in: HeadStandIn, seen: Seen, known: Route | None) -> Reading | NotLean:
    """Say from a pass what the model does to its logits, or why they cannot be left out.

    What can be said by the graph, and by which tensors are the same, is said here, without waiting for the device.

    Args:
        model: whose pass it was.
        stand_in: what stood in the place of the head, its probe returned.
        seen: what the model made of it.
        known: what an earlier pass has told; None before there was one.
    """
    if stand_in.calls != 1:
        return called_often(stand_in, seen.logits)
    with_graph = torch.is_grad_enabled()
    told_by_graph = with_graph or (known is not None and known.with_graph)
    if seen.auxiliary is not None and not told_by_graph and bool(seen.auxiliary != 0):
        return NotLean("only a graph tells what its auxiliary loss is made from", final=False)
    # That a model can write into its logits unnoticed by autograd, the first pass rules out by their values.
    as_before = known is not None and known.transform == IDENTITY and stand_in.left_alone(seen.logits)
    steps = stand_in.steps_to(seen.logits) if with_graph and not as_before else None
    if as_before:
        asked = Reading(IDENTITY)
    elif known is not None and known.told is not None and steps == known.told[0]:
        # The same steps, by the same numbers, of which the values were asked before.
        asked = Reading(known.told[1], steps)
    else:
        asked = calibration.ask(stand_in.probe, seen.logits, steps)
    reason = None
    if with_graph and (not seen.logits.requires_grad or seen.logits._backward_hooks):
        reason = "no gradient comes back through its logits, or a hook on them changes it"
    elif with_graph and (known is None or not known.with_graph) and not _keeps_slope(stand_in, seen, asked):
        reason = "the gradient that comes back through its logits is another than their values tell"
    elif with_graph and (place := graph.tells_rows_apart(seen.logits)) is not None:
        reason = f"what the model does to its logits may depend on where they stand ({place})"
    elif with_graph and not stand_in.alone_led_to(seen.logits, model):
        reason = "what the model does to its logits is trained, too, or made from other parts of it"
    elif seen.auxiliary is not None and stand_in.led_to(seen.auxiliary):
        reason = "the model adds to its loss what it makes of its logits (a z-loss, say)"
    if reason is None:
        return asked
    verdict = verdict_of(asked)
    return verdict if isinstance(verdict, NotLean) else NotLean(reason)


def _keeps_slope(stand_in: HeadStandIn, seen: Seen, asked: Reading) -> bool:
    found = asked.read()
    return isinstance(found, str) or stand_in.left_alone(seen.logits) or stand_in.keeps_slope(seen.logits, found)


def verdict_of(asked: Reading | NotLean) -> Transform | NotLean:
    """Wait for what a pass says."""
    if isinstance(asked, NotLean):
        return asked
    found = asked.read()
    return NotLean(found) if isinstance(found, str) else found


def expected(asked: Reading | NotLean, known: Route) -> Transform | NotLean:
    """Say what a pass after others shows; where that is on its way and the last one was steady, what is expected.

    A transform that stays is read when the device has the kernel to work on.
    """
    waits = isinstance(asked, Reading) and asked.waits
    return known.transform if waits and known.steady else verdict_of(asked)


def called_often(stand_in: HeadStandIn, logits: Tensor | None = None) -> NotLean:
    """Say that a head is not called once. Some forwards make the logits of one token by themselves, of no others."""
    alone = not stand_in.calls and logits is not None and logits[..., 0].numel() == 1
    return NotLean(f"the model calls its head {stand_in.calls} times", final=not alone)


def agree(model: nn.Module, verdict: Transform | NotLean) -> Transform | NotLean:
    """Take the same verdict on all ranks that share the model's weights: each pass more is a collective for all.

    Args:
        model: sharded, or not; then the ranks need not agree.
        verdict: of this rank.

    Returns:
        The first rank's reason not to be lean, if there is one, else the verdict.
    """
    if not is_sharded(model):
        return verdict
    verdicts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(verdicts, verdict)
    return next((other for other in verdicts if isinstance(other, NotLean)), verdict)


def require_free(model: nn.Module, found: NotLean, *, insists: bool, first: bool) -> None:
    """Refuse where a batch cannot be scored from hidden states, and not from logits either.

    Args:
        model: whose batch it is.
        found: why not from hidden states.
        insists: whether a kernel was asked for by name.
        first: whether it is the first batch.

    Raises:
        UnsupportedModelError: says which way is closed, and what to set.
    """
    name = type(model).__name__
    if insists:
        raise UnsupportedModelError(
            f"{name}: a kernel was asked for by name, but {found.reason}. Set `kernel: auto` to score the model's "
            "logits instead."
        )
    if not first and is_sharded(model):
        raise UnsupportedModelError(
            f"{name}: this batch cannot be scored from hidden states as the earlier ones were, since "
            f"{found.reason}, and the ranks that share its weights cannot change together. Set `kernel: logits`."
        )


def all_or_none(model: nn.Module, error: Exception | None) -> Exception | None:
    """Return this rank's error where all ranks that share the model's weights have one; else raise it.

    Raises:
        RuntimeError: another rank has failed where this one has not.
    """
    if not is_sharded(model):
        return error
    failures: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, error and f"{type(error).__name__}: {error}")
    failed = [rank for rank, failure in enumerate(failures) if failure]
    if failed and len(failed) < len(failures):
        raise error or RuntimeError(f"rank {failed[0]} failed in the first forward pass: {failures[failed[0]]}")
    return error


def is_fsdp2(model: nn.Module) -> bool:
    """Whether FSDP2, and nothing else, shards the weights."""
    names = {cls.__name__ for module in model.modules() for cls in type(module).__mro__}
    others = any(hasattr(p, "ds_id") for p in model.parameters()) or (getattr(model, "tp_size", None) or 1) > 1
    return "FSDPModule" in names and "FullyShardedDataParallel" not in names and not others


def is_sharded(model: nn.Module) -> bool:
    """Whether ranks must run the same passes: their forward passes contain collectives."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return False
    sharding = {"FSDPModule", "FullyShardedDataParallel"}
    if any(sharding & {cls.__name__ for cls in type(module).__mro__} for module in model.modules()):
        return True
    return any(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in model.parameters())
