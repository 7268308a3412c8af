"""The line that says at the start what is on."""

from __future__ import annotations

from collections.abc import Sequence

from dft_plugin.hf.attachment import Attachment
from dft_plugin.hf.computing import kernel_of
from dft_plugin.hf.head import find_door, look_at
from dft_plugin.objectives import wording


def startup_line(attachment: Attachment, trainer: str, replaced: Sequence[str] = (), tokens: str = "") -> str:
    """Say in one line what is on: objective, how it is computed, and what of the host's was replaced.

    Args:
        attachment: on the model that is trained.
        trainer: what to call the trainer.
        replaced: the trainer's settings that were changed, in words.
        tokens: which tokens are treated apart, in words.
    """
    plan = attachment.plan
    on = f"dft: loss {plan.describe()} is on for {type(attachment.model).__name__} ({trainer}): {_how(attachment)}"
    besides = wording.besides(
        scratch_mb=None if plan.scratch_bytes is None else plan.scratch_bytes >> 20,
        reference=_compared(attachment),
        tokens=[tokens] if tokens else [],
        log=plan.extra,
        resume=plan.resume,
        nonfinite=plan.nonfinite,
    )
    return "; ".join([on, *besides, *([f"replaces {', '.join(replaced)}"] if replaced else [])])


def _compared(attachment: Attachment) -> str | None:
    """Say what the model is compared with, and what that costs."""
    if attachment.reference is not None:
        return f"{attachment.reference.says} (one more forward pass, without gradient, for each batch)"
    return f"{attachment.plan.reference} of the data" if attachment.plan.reference else None


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
    name, why = kernel_of(plan, reading, plan.every)
    return f"kernel {name} ({why})" if why else f"kernel {name}"
