"""The naive kernel: full logits, autograd, any dtype. What the others are compared with.

Shapes: T scored tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dft_plugin.kernels.softmax import accumulation_dtype
from dft_plugin.kernels.types import Head, KernelResult
from dft_plugin.objectives import Objective, Rows, RowStatistic


def reference(
    hidden_TD: Tensor,
    head: Head,
    targets_T: Tensor,
    objective: Objective,
    *,
    needs: frozenset[RowStatistic] = frozenset(),
    scratch_bytes: int | None = None,
) -> KernelResult:
    """Score as a textbook would, at the cost of several copies of [T, V].

    Args:
        hidden_TD: what the model gives to its head, only scored positions.
        head: weight, bias, transform, LoRA branch.
        targets_T: int64 targets in [0, V).
        objective: gives the weights.
        needs: not used; all statistics are returned.
        scratch_bytes: not used.
    """
    del needs, scratch_bytes
    logits_TV = torch.nn.functional.linear(hidden_TD, head.weight_VD, head.bias_V)
    if head.low_rank is not None:
        logits_TV = logits_TV + head.low_rank.input_TR @ head.low_rank.weight_VR.t()
    logits_TV = head.transform(logits_TV.to(accumulation_dtype(logits_TV.dtype)))
    logp_TV = logits_TV.log_softmax(-1)
    logp_T = logp_TV.gather(1, targets_T[:, None])[:, 0]
    p_TV = logp_TV.detach().exp()
    rows = Rows(
        logp_T=logp_T.detach(),
        one_minus_p_T=-torch.expm1(logp_T.detach()),
        is_top1_T=logits_TV.detach().argmax(-1) == targets_T,
        entropy_T=-(p_TV * logp_TV.detach()).nan_to_num().sum(-1),
        sum_p_squared_T=p_TV.square().sum(-1),
    )
    weight_T = objective.weight(rows).detach()
    return KernelResult(-(weight_T * logp_T).sum(), rows, weight_T)
