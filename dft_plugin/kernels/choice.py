"""`kernel: auto`: which kernel suits a head."""

from __future__ import annotations

import torch
from torch import Tensor

from dft_plugin.kernels.linear_blocked import blocked
from dft_plugin.kernels.linear_chunked import chunked
from dft_plugin.kernels.types import Head, Kernel, KernelResult
from dft_plugin.objectives import RowStatistic, Targets, Weigher


def choose(device_type: str, *, trained: bool) -> Kernel:
    """Return `blocked` for a frozen head on a CPU, where it was measured to win, else `chunked`.

    Args:
        device_type: of the head's weight, e.g. `cpu` or `cuda`.
        trained: whether weight, bias or a LoRA branch of the head gets a gradient.
    """
    return blocked if device_type == "cpu" and not trained else chunked


def auto(
    hidden_TD: Tensor,
    head: Head,
    targets: Targets,
    objective: Weigher,
    *,
    needs: frozenset[RowStatistic] = frozenset(),
    scratch_bytes: int | None = None,
) -> KernelResult:
    """Score with the kernel that `choose` returns; arguments as those of `chunked`."""
    kernel = choose(head.weight_VD.device.type, trained=head.trained and torch.is_grad_enabled())
    return kernel(hidden_TD, head, targets, objective, needs=needs, scratch_bytes=scratch_bytes)
