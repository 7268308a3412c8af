"""Never silently off: what to say where a trainer computed a loss that is not ours."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from dft_plugin.errors import NotActiveError, UnsupportedModelError, name_of
from dft_plugin.hf.attachment import Attachment
from dft_plugin.hf.model import unwrap

BEFORE_BACKWARD = "a training step computed its loss without the one that `loss:` asks for. No gradient was made of it"
AFTER_BACKWARD = (
    "a training step ended without the loss that `loss:` asks for. The trainer's optimizer did not step on it (one "
    "that steps inside the backward pass has)"
)
EVALUATION = "an evaluation or prediction computed its loss without the one that `loss:` asks for"


def not_active(
    attachment: Attachment, happened: str = AFTER_BACKWARD, model: nn.Module | None = None
) -> NotActiveError:
    """Return the error for a loss that was not ours.

    Args:
        attachment: that should have answered.
        happened: what was noticed, as a sentence without its full stop.
        model: the model that the trainer holds; None: not known.
    """
    return NotActiveError(f"{happened}: {_why(attachment, model)}")


def _why(attachment: Attachment, model: nn.Module | None) -> str:
    if model is not None and not _is_inside(attachment.model, model):
        return (
            f"the trainer's model is not the {type(attachment.model).__name__} that the loss was put on; "
            "`trainer.model` was replaced since. Call `activate(trainer)` again, after that."
        )
    if not attachment.active:
        return (
            "the loss was taken off this trainer's model since (by `detach()`, or by an `attach` or `activate` of "
            "somebody else's for the same model). Call `activate(trainer)` again."
        )
    forward = inspect.unwrap(attachment.model.forward)
    if not _is_ours(forward):
        return (
            f"something took over the model's forward, which is now {name_of(forward)}. Disable that (Liger, "
            "Unsloth), or leave out `loss:`."
        )
    return (
        "the model was not asked for it: a `compute_loss`, a `training_step` or a `prediction_step` in between took "
        "the labels out of the model's inputs, made its loss from something else than this model's own answer, or "
        "called the model outside `compute_loss`. Let it call `super().compute_loss(...)`, or leave out `loss:`."
    )


def _is_inside(model: nn.Module, wrapped: nn.Module) -> bool:
    try:
        return unwrap(wrapped) is model or any(module is model for module in wrapped.modules())
    except UnsupportedModelError:
        return any(module is model for module in wrapped.modules())


def _is_ours(forward: Any) -> bool:
    module = getattr(forward, "__module__", None) or type(forward).__module__
    return isinstance(forward, Attachment) or str(module).split(".")[0] in ("dft_plugin", "dft_trl")
