"""Linear layer and token loss in one, over chunks of tokens, with the gradient made in the forward pass.

Equal to this, without ever holding [T, V]::

    logits_TV = transform(hidden_TD @ weight_VD.T + bias_V + input_TR @ weight_VR.T)
    logp_T = logits_TV.float().log_softmax(-1).gather(1, targets_T[:, None])[:, 0]
    loss_sum = -(objective.weight(rows).detach() * logp_T).sum()

Shapes: T scored tokens, C tokens of a chunk, D hidden size, V vocabulary, R LoRA rank.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from dft_plugin.kernels.budget import beside_another, chunk_rows, free_bytes, processors
from dft_plugin.kernels.gemm import compute_dtype
from dft_plugin.kernels.gradients import sums_over_tokens
from dft_plugin.kernels.scoring import score_rows_
from dft_plugin.kernels.sweep import Sweep, score
from dft_plugin.kernels.terms import is_soft
from dft_plugin.kernels.types import Head, KernelResult
from dft_plugin.objectives import RowStatistic, Targets, Weigher


def chunked(
    hidden_TD: Tensor,
    head: Head,
    targets: Targets,
    objective: Weigher,
    *,
    needs: frozenset[RowStatistic] = frozenset(),
    scratch_bytes: int | None = None,
) -> KernelResult:
    """Score hidden states chunk by chunk.

    1. project a chunk: one GEMM into a buffer [C, V] that is used again for every chunk;
    2. turn the buffer into p, in place, and take the statistics (`score_rows_`);
    3. ask the objective for w, which is detached: the gradient on the logits is w * (p - onehot), and
       nothing of it depends on what happens downstream but one scalar factor;
    4. so make the gradients now (`gradients.Gradients`): one GEMM for the hidden states, one for a trained weight;
    5. backward multiplies them by the upstream factor, and a token's own by its weight.

    Two GEMMs with a frozen head and three with a trained one; kernels that recompute the logits
    in backward pay three and four. Memory beyond inputs and gradients: C * V elements, with C chosen so
    that they fit `scratch_bytes` (`budget.chunk_rows`).

    Composes with autocast (GEMMs in its dtype), with gradient checkpointing around the model, with FSDP2
    and ZeRO-3 when called inside the head's forward, and with a second backward over a retained graph,
    which recomputes.

    Args:
        hidden_TD: what the model gives to its head, only scored positions.
        head: weight, bias, transform, LoRA branch.
        targets: with ids in [0, V).
        objective: gives the weights.
        needs: costly statistics to return.
        scratch_bytes: bound on the buffer of logits; None: see `budget.chunk_rows`.
    """
    dtype, low_rank, device = compute_dtype(head.weight_VD), head.low_rank, head.weight_VD.device
    if is_soft(objective):
        scratch_bytes = beside_another(device.type, scratch_bytes)
    rows = chunk_rows(
        device.type,
        head.vocab_size * dtype.itemsize,
        scratch_bytes,
        tokens=hidden_TD.shape[0],
        weight_trained=head.weight_VD.requires_grad and torch.is_grad_enabled(),
        width=head.weight_VD.shape[1],
        processors=processors(device),
        free_bytes=None if scratch_bytes is not None else free_bytes(device),
    )
    needs = needs | objective.needs
    score_ = partial(score_rows_, transform=head.transform, needs=needs)
    return score(
        Sweep(objective, dtype, rows, score_, sums_over_tokens, transform=head.transform, needs=needs),
        targets,
        hidden_TD,
        head.weight_VD,
        head.bias_V,
        low_rank.input_TR if low_rank else None,
        low_rank.weight_VR if low_rank else None,
    )
