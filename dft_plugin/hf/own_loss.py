"""Classes that make their loss themselves, instead of asking `model.loss_function`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dft_plugin.core import targets
from dft_plugin.errors import UnsupportedModelError
from dft_plugin.hf.interception import LossRecorder, recording
from dft_plugin.hf.model import auxiliary_loss


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, whatever its class."""
    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "out of memory" in text or "alloc" in text


def asks_for_loss(model: nn.Module, forward: Callable[..., Any], inputs: dict[str, Any]) -> bool:
    """Whether a labelled forward, with the model's own head, calls `model.loss_function`; False if it fails.

    Args:
        model: the module whose forward it is.
        forward: its forward.
        inputs: a batch with labels.
    """
    recorder = LossRecorder()
    try:
        with torch.no_grad(), recording(model, recorder):
            forward(**inputs, return_dict=True)
    except Exception:
        # It fails without the stand-in, too: the error is the model's.
        return True
    return bool(recorder.calls)


def check_own_loss(model: Any, forward: Callable[..., Any], inputs: dict[str, Any]) -> None:
    """Check that a forward which computes its loss by itself computes the likelihood of the next token.

    A fused forward does. But some classes do not shift the labels that they are given, and others score
    something else; our loss in its place would be another training altogether.

    Args:
        model: the model in question.
        forward: its forward, which does not ask for `loss_function`.
        inputs: a batch with labels.

    Raises:
        UnsupportedModelError: its loss is a different one.
    """
    unlabelled = {key: value for key, value in inputs.items() if key not in ("labels", "shift_labels")}
    labels_BS = inputs["labels"]

    def run(**given: Any) -> Any:
        # In train mode, where fused forwards differ, and so with the same dropout in both.
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            return forward(return_dict=True, **given)

    theirs = run(**inputs).get("loss")
    output = run(**unlabelled)
    if theirs is None:
        return
    logits = output["logits"]
    ours = nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), targets.shift(labels_BS).flatten(), ignore_index=targets.IGNORE_INDEX
    )
    auxiliary = auxiliary_loss(model, output)
    ours = ours if auxiliary is None else ours + auxiliary
    if not torch.allclose(theirs.float(), ours, rtol=1e-4 if logits.dtype.itemsize >= 4 else 2e-2):
        raise UnsupportedModelError(
            f"{type(model).__name__} computes a loss of its own that is not the likelihood of the next token (it "
            f"gives {float(theirs):.6g} where that is {float(ours):.6g}; some classes do not shift their labels). "
            "Train it without `loss:`."
        )
