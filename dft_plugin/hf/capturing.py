"""Passes that do not run as they stand: CUDA graphs replay them, and functorch transforms what they compute."""

from __future__ import annotations

import torch
from torch import nn

from dft_plugin.errors import UnsupportedModelError


def require_plain(model: nn.Module) -> None:
    """Refuse a labelled pass that is recorded to be replayed, or is part of a function that is transformed.

    Raises:
        UnsupportedModelError: the current stream captures a CUDA graph; or the call is inside of a `torch.func`.
    """
    if torch.compiler.is_compiling():
        # torch.compile captures what it compiles by itself, and is not to trace the question.
        return
    # Where nothing has run on CUDA there may be no driver to ask.
    ready = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if ready and torch.cuda.is_current_stream_capturing():
        raise UnsupportedModelError(
            f"{type(model).__name__}: a CUDA graph is being captured, and a replay would score the positions of this "
            "batch's labels in every other: their number is read, and differs. Capture the model without labels, or "
            'let torch.compile(model, mode="reduce-overhead") capture what can be, around the loss.'
        )
    if torch._C._are_functorch_transforms_active():
        raise UnsupportedModelError(
            f"{type(model).__name__}: a labelled call stands inside a transform of torch.func (grad, vjp, vmap ...), "
            "which cannot look into how this loss makes its gradients. Call loss.backward() or torch.autograd.grad "
            "instead, or detach the loss (`attachment.detach()`) and transform the model's own."
        )
