"""One run of a model's own forward in which we see its hidden states and its call for a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dft_plugin.core import targets
from dft_plugin.errors import UnsupportedModelError
from dft_plugin.hf.head import head_slots
from dft_plugin.kernels import may_overwrite


@dataclass(frozen=True)
class Seen:
    """What one run of the model's forward showed.

    Attributes:
        output: what the model returned.
        logits: what its loss would have been made from; the stand-in's, where one stood in.
        labels_BS: aligned labels.
        auxiliary: what the model adds to any loss (a router's), scaled by the model; or None.
    """

    output: Any
    logits: Tensor
    labels_BS: Tensor
    auxiliary: Tensor | None


class HeadStandIn(nn.Module):
    """Stands where the head stands for one forward pass: keeps the hidden states, makes no logits.

    In the forward itself nothing else changes, so scaling, caps, routers and output classes remain
    the model's own business.

    Args:
        head: as it is registered in the model.
        probe: [1, K, V], what to return on the first batch, when it is asked what the model makes of its logits.
    """

    def __init__(self, head: nn.Module, probe: Tensor | None = None) -> None:
        super().__init__()
        self.head = head
        self.training = head.training
        self.calls = 0
        self.hidden: Tensor | None = None
        self.probe = probe

    def forward(self, hidden: Tensor) -> Tensor:
        """Keep `hidden` [B, S, D]; return one zero per position, or the probe."""
        self.calls += 1
        self.hidden = hidden
        if self.probe is None:
            return hidden.new_zeros((*hidden.shape[:-1], 1), dtype=torch.float32)
        self.probe = self.probe.to(hidden.device).requires_grad_(torch.is_grad_enabled())
        # A copy, since some forwards change their logits in place.
        return self.probe.clone()

    def led_to(self, value: Tensor) -> bool:
        """Whether `value` was computed from the probe; asked with a graph."""
        if not value.requires_grad or self.probe is None:
            return False
        return torch.autograd.grad(value, self.probe, retain_graph=True, allow_unused=True)[0] is not None

    def release(self) -> None:
        """Forget the pass before."""
        self.calls, self.hidden = 0, None

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

    def __call__(
        self, logits: Tensor, labels: Tensor, *args: Any, shift_labels: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Record logits and aligned labels, in the signature of transformers' loss functions."""
        self.calls += 1
        self.logits = logits
        self.labels = shift_labels if shift_labels is not None else targets.shift(labels)
        return torch.zeros((), dtype=torch.float32, device=logits.device)


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
    with standing_in(model, stand_in), recording(model, recorder):
        output = forward(**inputs, return_dict=True)
    if recorder.calls > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} asks for {recorder.calls} losses in one forward pass; only one "
            "can be replaced. Train it without `loss:`."
        )
    if recorder.logits is None or recorder.labels is None:
        return None
    shift_labels = inputs.get("shift_labels")
    aligned = recorder.labels if shift_labels is None else shift_labels
    added = output.loss
    return Seen(output, recorder.logits, aligned, added if added.requires_grad or added != 0 else None)


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
    """Let `recorder` answer `model.loss_function` for a while."""
    # The property of PreTrainedModel keeps an override in `_loss_function`.
    before = model.__dict__.get("_loss_function")
    model.__dict__["_loss_function"] = recorder
    try:
        yield
    finally:
        if before is None:
            del model.__dict__["_loss_function"]
        else:
            model.__dict__["_loss_function"] = before


def logits_are_spare(model: Any, logits: Tensor) -> bool:
    """Whether nobody reads the logits of this pass again, once they are scored: neither autograd nor a hook."""
    head = model.get_output_embeddings()
    hooked = head is not None and any(module._forward_hooks for module in head.modules())
    return may_overwrite(logits) and not hooked
