"""By which path and kernel a model's loss is computed, as it was seen in the last pass."""

from __future__ import annotations

from collections.abc import Iterable

from dft_plugin.core.plan import LossPlan
from dft_plugin.hf.attachment import Attachment
from dft_plugin.hf.head import ReadableHead, find_door, look_at
from dft_plugin.kernels import auto, blocked, choose, hands_over
from dft_plugin.kernels.scoring import row_scorer
from dft_plugin.objectives import Weigher


def kernel_of(plan: LossPlan, reading: ReadableHead, weighers: Iterable[Weigher]) -> tuple[str, str]:
    """Name the kernel that scores behind a head that can be read, and why it is not the one that was asked for.

    Args:
        plan: which one is asked for.
        reading: the head.
        weighers: what gives the weights: all of a run, or what holds now.
    """
    kernel = plan.kernel
    if kernel is auto:
        kernel = choose(reading.linear.weight.device.type, trained=reading.trained)
    if kernel is blocked:
        reasons = (hands_over(one, plan.wanted, trained=reading.trained) for one in weighers)
        for reason in filter(None, reasons):
            return "chunked", reason
    return kernel.__name__, ""


def computed(attachment: Attachment) -> dict[str, str]:
    """Say how the last pass was computed: `path`, `kernel`, `rows` (what scored rows of logits), `why`.

    Empty before the first pass, which decides.
    """
    route, plan = attachment.route, attachment.plan
    if route is None or not attachment.calls:
        return {}
    rows, why = row_scorer(attachment.model.device.type).code, route.why_not_lean or ""
    if route.path == "logits":
        return _said(path="logits", rows=rows, why=why)
    head = attachment.model.get_output_embeddings()
    reading = look_at(find_door(head)) if head is not None else why
    if why or isinstance(reading, str):
        return _said(path="hidden states", kernel="opaque", rows=rows, why=why or str(reading))
    name, handed = kernel_of(plan, reading, [plan.weigher(attachment.clock)])
    return _said(path="hidden states", kernel=name, rows="" if name in _OWN_ROWS else rows, why=handed)


_OWN_ROWS = ("blocked", "reference")
"""Kernels that score by code of their own."""


def _said(**parts: str) -> dict[str, str]:
    return {key: text for key, text in parts.items() if text}
