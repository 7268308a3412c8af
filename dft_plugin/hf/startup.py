"""The line that says at the start what is on."""

from __future__ import annotations

from collections.abc import Sequence

from dft_plugin.hf.attachment import Attachment
from dft_plugin.hf.head import find_door, look_at
from dft_plugin.kernels import auto, blocked, choose


def startup_line(attachment: Attachment, trainer: str, replaced: Sequence[str] = ()) -> str:
    """Say in one line what is on: objective, how it is computed, and what of the host's was replaced.

    Args:
        attachment: on the model that is trained.
        trainer: what to call the trainer.
        replaced: the trainer's settings that were changed, in words.
    """
    objective = attachment.plan.objective
    instead = f"; replaces {', '.join(replaced)}" if replaced else ""
    options = ", ".join(f"{key}={value}" for key, value in objective.model_dump().items())
    name = f"{objective.name}({options})" if options else objective.name
    model = type(attachment.model).__name__
    return f"dft: loss {name} is on for {model} ({trainer}): {_how(attachment)}{instead}"


def _how(attachment: Attachment) -> str:
    """Say how the loss will be computed, as far as the head shows it before the first batch."""
    plan = attachment.plan
    if plan.path == "logits":
        return "scores the logits that the model makes (kernel: logits)"
    head = attachment.model.get_output_embeddings()
    if head is None:
        return "scores the logits that the model makes (it has no output embeddings)"
    reading = look_at(find_door(head))
    if isinstance(reading, str):
        return f"calls the head on chunks of tokens ({reading})"
    kernel = plan.kernel
    if kernel is auto:
        kernel = choose(reading.linear.weight.device.type, trained=reading.trained)
    if kernel is blocked and reading.trained:
        return "kernel chunked (blocked is for a frozen head)"
    return f"kernel {kernel.__name__}"
