"""The bare GEMMs that no exact loss can do without: what ratios are taken against.

Shapes: N tokens, H hidden size, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.problem import HiddenInputs

CHUNKS = (512, 1024, None)
"""Rows of a chunk that are tried; None is all rows at once."""


def name(chunk: int | None) -> str:
    """Say how the rows were cut."""
    return "all rows at once" if chunk is None else f"chunks of {chunk:,} rows"


def bare_gemms(inputs: HiddenInputs, count: int, chunk: int | None) -> Callable[[], None]:
    """Return a function that does the matrix products of a training step, and nothing else.

    Args:
        inputs: whose tensors are multiplied.
        count: 1 for the logits, 2 with the gradient of the hidden states, 3 with that of the weight.
        chunk: rows of a chunk; None is all rows at once. Outputs go to buffers that are made here.
    """
    hidden_NH, weight_VH = inputs.hidden_NH.detach(), inputs.weight_VH.detach()
    tokens = hidden_NH.shape[0]
    step = min(chunk or tokens, tokens)
    logits_CV = weight_VH.new_zeros(step, weight_VH.shape[0])
    grad_NH = torch.zeros_like(hidden_NH) if count > 1 else None
    grad_VH = torch.zeros_like(weight_VH) if count > 2 else None

    def run() -> None:
        for start in range(0, tokens, step):
            hidden_CH = hidden_NH[start : start + step]
            out_CV = logits_CV[: hidden_CH.shape[0]]
            torch.mm(hidden_CH, weight_VH.t(), out=out_CV)
            if grad_NH is not None:
                torch.mm(out_CV, weight_VH, out=grad_NH[start : start + step])
            if grad_VH is not None:
                # The first product would need no addition, but cutting the rows does.
                grad_VH.addmm_(out_CV.t(), hidden_CH, beta=0.0 if start == 0 else 1.0)

    return run
