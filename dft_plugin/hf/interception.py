"""One run of a model's own forward in which we see its hidden states and its call for a loss."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dft_plugin.core import targets
from dft_plugin.core.transfer import version_of
from dft_plugin.errors import UnsupportedModelError
from dft_plugin.hf import graph
from dft_plugin.hf.head import head_slots
from dft_plugin.hf.labels import Labels, SentAhead, of_all_tokens, require_unshifted
from dft_plugin.kernels import Transform


@dataclass(frozen=True)
class Seen:
    """What one run of the model's forward showed.

    Attributes:
        output: what the model returned.
        logits: what its loss would have been made from; the stand-in's, where one stood in.
        labels: what is scored.
        auxiliary: what the model adds to any loss (a router's), scaled by the model; or None. Without a graph it may
            be zero.
    """

    output: Any
    logits: Tensor
    labels: Labels
    auxiliary: Tensor | None


_SLOPE = 0.05
"""Relative tolerance of a gradient: logits may have been rounded to half precision on their way."""


class HeadStandIn(nn.Module):
    """Stands where the head stands for one forward pass: keeps the hidden states, makes no logits.

    In the forward itself nothing else changes, so scaling, caps, routers and output classes remain
    the model's own business. It stands there for the thread that makes it.

    Args:
        head: as it is registered in the model.
        probe: [1, K, V], what to return: what the model makes of it says what it does to its logits.
    """

    def __init__(self, head: nn.Module, probe: Tensor) -> None:
        super().__init__()
        self.head = head
        self.training = head.training
        self.calls = 0
        self.hidden: Tensor | None = None
        self.answer: Tensor | None = None
        self.probe = probe.detach().requires_grad_(torch.is_grad_enabled())
        # A compiler has one thread, and does not trace the question.
        self._thread = None if torch.compiler.is_compiling() else threading.get_ident()

    def forward(self, hidden: Tensor) -> Tensor:
        """Keep `hidden` [B, S, D], and return the probe."""
        if not torch.compiler.is_compiling() and self._thread not in (None, threading.get_ident()):
            # Somebody else's call without labels (a sample's, a server's), for which the head stands there.
            logits: Tensor = self.head(hidden)
            return logits
        self.calls += 1
        self.hidden = hidden
        if self.probe.device != hidden.device:
            self.probe = self.probe.detach().to(hidden.device).requires_grad_(self.probe.requires_grad)
        # A copy, since some forwards change their logits in place.
        self.answer = self.probe.clone()
        return self.answer

    def left_alone(self, logits: Tensor) -> bool:
        """Whether `logits` are what was returned here, and nobody has written into them."""
        return logits is self.answer and version_of(logits) == 0

    def steps_to(self, logits: Tensor) -> graph.Steps | None:
        """Say what the model did to what was returned here, where graph and versions show it; None: ask the values."""
        if self.answer is None or version_of(self.answer) != 0 or version_of(logits) != 0:
            return None
        return graph.by_numbers(logits, self.probe)

    def keeps_slope(self, logits: Tensor, transform: Transform) -> bool:
        """Whether the gradient that comes back through `logits` is that of their values; asked with a graph. Waits."""
        slope = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype, device=logits.device).view_as(logits)
        leaf = self.probe.detach().requires_grad_()
        with torch.enable_grad():
            expected = torch.autograd.grad(transform(leaf.to(logits.device)), leaf, slope.to(leaf.dtype))[0]
        graded: Sequence[Tensor | None] = torch.autograd.grad(
            logits, self.probe, slope, retain_graph=True, allow_unused=True
        )
        found = graded[0]
        scale = expected.abs().amax().clamp(min=1e-30)
        return found is not None and bool((found - expected).abs().amax() <= _SLOPE * scale)

    def led_to(self, value: Tensor) -> bool:
        """Whether `value` was computed from the probe; asked with a graph."""
        if not value.requires_grad:
            return False
        return torch.autograd.grad(value, self.probe, retain_graph=True, allow_unused=True)[0] is not None

    def alone_led_to(self, logits: Tensor, model: Any) -> bool:
        """Whether nothing else that is trained went into what `model` made of the probe; asked with a graph.

        A compiled region is one node, which has all its inputs behind it, the backbone's weights too: then only what
        stands beside backbone and head counts.
        """
        aside = {id(self.probe)}
        if graph.is_compiled(logits):
            inside = (self.head, getattr(model, model.base_model_prefix, None))
            aside |= {id(parameter) for module in inside if module is not None for parameter in module.parameters()}
        return all(id(leaf) in aside for leaf in graph.leaves(logits))

    def release(self) -> None:
        """Forget the pass before."""
        self.calls, self.hidden, self.answer = 0, None, None

    def __getattr__(self, name: str) -> Any:
        # Some forwards read `lm_head.weight.dtype`.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("head"), name)


class LossRecorder:
    """Answers `model.loss_function`: records what the model asks for, and returns a zero.

    What the model adds to the zero (a router's auxiliary loss, say) is what it would add to any loss.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.logits: Tensor | None = None
        self.labels: Tensor | None = None
        self.shifted = False
        self.ignore_index = targets.IGNORE_INDEX
        self._zero: Tensor | None = None
        self._answer: Tensor | None = None
        self._node: Any = None

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int | None = None,
        num_items_in_batch: Any = None,
        ignore_index: int = targets.IGNORE_INDEX,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Record logits and labels, in the signature of transformers' loss functions."""
        self.calls += 1
        self.logits = logits
        self.labels, self.shifted = (labels, False) if shift_labels is None else (shift_labels, True)
        self.ignore_index = ignore_index
        if not torch.is_inference_mode_enabled() and not torch.compiler.is_compiling():
            # What the model makes of the answer is seen by a graph, in an evaluation too; see `recording`.
            torch.set_grad_enabled(True)
        self._zero = torch.zeros((), dtype=torch.float32, device=logits.device, requires_grad=torch.is_grad_enabled())
        # No leaf: some forwards add to it in place.
        self._answer = self._zero.clone()
        self._node = self._answer.grad_fn
        return self._answer

    def added_to(self, loss: Tensor) -> Tensor | None:
        """Return what a model has added to the answer; None if it returned that as it was.

        Raises:
            ValueError: it multiplied the answer, too, or bent it; says so.
        """
        assert self._zero is not None
        if loss is self._answer and version_of(loss) == 0:
            return None
        if not loss.requires_grad or graph.is_sum_with(loss, self._node):
            return loss if torch.is_grad_enabled() else loss.detach()
        bend = graph.bend_in(loss, self._node)
        if bend is not None:
            raise ValueError(f"bends the loss that it asks for ({bend})")
        factors: Sequence[Tensor | None] = torch.autograd.grad(loss, self._zero, retain_graph=True, allow_unused=True)
        factor = factors[0]
        if factor is not None and float(factor) != 1.0:
            raise ValueError(f"multiplies the loss that it asks for by {float(factor):g}")
        return loss if torch.is_grad_enabled() else loss.detach()


def run_asking(
    model: nn.Module, forward: Callable[..., Any], inputs: dict[str, Any], stand_in: HeadStandIn | None = None
) -> Seen | None:
    """Run a forward with labels, and answer its call for a loss. Returns None if it makes none.

    Args:
        model: the module whose forward it is.
        forward: its forward.
        inputs: with `labels`, and maybe `shift_labels`.
        stand_in: in the place of its head, or None.

    Raises:
        UnsupportedModelError: it asks for several losses.
    """
    recorder = LossRecorder()
    name = type(model).__name__
    shift_labels = inputs.get("shift_labels")
    ahead = SentAhead(inputs["labels"] if shift_labels is None else shift_labels)
    with standing_in(model, stand_in), recording(model, recorder):
        output = require_mapping(model, forward(**inputs, return_dict=True))
    if recorder.calls > 1:
        raise UnsupportedModelError(
            f"{name} asks for {recorder.calls} losses in one forward pass; only one can be replaced. Train it without "
            "`loss:`."
        )
    if recorder.logits is None or recorder.labels is None:
        return None
    labels = Labels(ahead.fetch(recorder.labels), recorder.shifted, recorder.ignore_index)
    if shift_labels is not None:
        # The caller's own, whatever the class does with its labels.
        labels = Labels(ahead.fetch(shift_labels), aligned=True, ignore_index=recorder.ignore_index)
    try:
        added = recorder.added_to(output.loss)
    except ValueError as change:
        raise UnsupportedModelError(f"{name} {change}, which would be lost. Train it without `loss:`.") from None
    for key, part in output.items():
        if isinstance(part, Tensor) and part.requires_grad and not torch.is_grad_enabled():
            output[key] = part.detach()
    return Seen(output, recorder.logits, labels, added)


def require_mapping(model: nn.Module, output: Any) -> Any:
    """Return what a forward returned with `return_dict=True`, or refuse a model that does not heed it.

    Raises:
        UnsupportedModelError: the output is no mapping, so that no loss can be put into it.
    """
    if isinstance(output, Mapping):
        return output
    raise UnsupportedModelError(
        f"{type(model).__name__} returns a {type(output).__name__} for return_dict=True; a ModelOutput is needed, to "
        "put the loss into. In a loop of your own, use dft_plugin.token_loss."
    )


_OURS_TO_SAY = frozenset({"logits_to_keep", "return_dict", "num_items_in_batch"})
"""Arguments of a labelled call that the original forward does not get as they are."""


def own_arguments(model: nn.Module, forward: Callable[..., Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a labelled call as a model's own forward gets them."""
    given = {key: value for key, value in inputs.items() if key not in _OURS_TO_SAY}
    if given.get("labels") is None:
        given["labels"] = given["shift_labels"]
    given["labels"] = of_all_tokens(inputs, given["labels"])
    require_unshifted(given)
    if given.get("shift_labels") is None:
        given.pop("shift_labels", None)
    if model.training and "use_cache" in inspect.signature(forward).parameters:
        given.setdefault("use_cache", False)
    return given


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Switch the dropout in `module` off for a while, so that two passes through it agree.

    Nothing else leaves train mode: a 4-bit layer that runs in eval mode on a CPU repacks its weight for
    good, and then has no gradient.
    """
    dropouts = [child for child in module.modules() if isinstance(child, nn.Dropout) and child.training]
    for child in dropouts:
        child.training = False
    try:
        yield
    finally:
        for child in dropouts:
            child.training = True


@contextmanager
def resting(module: nn.Module) -> Iterator[None]:
    """Have a module in eval mode for a while: without dropout in attention too, jitter, or checkpoints.

    All but the layers of bitsandbytes, see `without_dropout`.
    """
    trained = [m for m in module.modules() if m.training and not type(m).__module__.startswith("bitsandbytes")]
    for child in trained:
        child.training = False
    try:
        yield
    finally:
        for child in trained:
            child.training = True


@contextmanager
def standing_in(model: nn.Module, stand_in: HeadStandIn | None) -> Iterator[None]:
    """Put `stand_in` where its head is registered in `model`, and the head back afterwards."""
    slots = head_slots(model, stand_in.head) if stand_in is not None else []
    for parent, name in slots:
        parent._modules[name] = stand_in
    try:
        yield
    finally:
        for parent, name in slots:
            assert stand_in is not None
            parent._modules[name] = stand_in.head


@contextmanager
def recording(model: nn.Module, recorder: LossRecorder) -> Iterator[None]:
    """Let `recorder` answer `model.loss_function` for a while. It has a graph made of what comes after its answer."""
    # The property of PreTrainedModel keeps an override in `_loss_function`.
    before = model.__dict__.get("_loss_function")
    model.__dict__["_loss_function"] = recorder
    with_graph = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(with_graph)
        if before is None:
            del model.__dict__["_loss_function"]
        else:
            model.__dict__["_loss_function"] = before
