"""The naive kernel: full logits, autograd, any dtype. What the others are compared with.

Shapes: T scored tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dft_plugin.kernels.added import added_to_rows
from dft_plugin.kernels.results import weigh
from dft_plugin.kernels.softmax import accumulation_dtype
from dft_plugin.kernels.terms import is_soft, soft_values
from dft_plugin.kernels.types import IDENTITY, Head, KernelResult
from dft_plugin.objectives import Rows, RowStatistic, Targets, Weigher


def reference(
    hidden_TD: Tensor,
    head: Head,
    targets: Targets,
    objective: Weigher,
    *,
    needs: frozenset[RowStatistic] = frozenset(),
    scratch_bytes: int | None = None,
) -> KernelResult:
    """Score as a textbook would, at the cost of several copies of [T, V].

    Args:
        hidden_TD: what the model gives to its head, only scored positions.
        head: weight, bias, transform, LoRA branch.
        targets: with ids in [0, V).
        objective: gives the weights.
        needs: all that have a name are returned; of functions those of the objective.
        scratch_bytes: not used.
    """
    del needs, scratch_bytes
    logits_TV = torch.nn.functional.linear(hidden_TD, head.weight_VD, head.bias_V)
    if head.low_rank is not None:
        logits_TV = logits_TV + head.low_rank.input_TR @ head.low_rank.weight_VR.t()
    logits_TV = head.transform(logits_TV.to(accumulation_dtype(logits_TV.dtype)))
    logp_TV = logits_TV.log_softmax(-1)
    logp_T = logp_TV.gather(1, targets.ids_T[:, None])[:, 0]
    p_TV = logp_TV.detach().exp()
    added = added_to_rows(objective.needs, logits_TV.detach(), targets.ids_T, IDENTITY)
    q_TV = None
    if is_soft(objective):
        q_TV, values = soft_values(objective, targets, logp_TV.detach())
        added = {**added, **values}
    rows = Rows(
        logp_T=logp_T.detach(),
        one_minus_p_T=-torch.expm1(logp_T.detach()),
        is_top1_T=logits_TV.detach().argmax(-1) == targets.ids_T,
        entropy_T=-(p_TV * logp_TV.detach()).nan_to_num().sum(-1),
        sum_p_squared_T=p_TV.square().sum(-1),
        added=added,
    )
    result = weigh(objective, rows, targets)
    # The value as the objective says, the gradient of -w log p, and of c times the cross-entropy under Q.
    surrogate = -(result.weight_T * logp_T).sum()
    if q_TV is not None and result.soft_T is not None:
        surrogate = surrogate - (result.soft_T[:, None] * q_TV * logp_TV.masked_fill(q_TV == 0, 0)).sum()
    return replace(result, loss_sum=surrogate + (result.loss_sum - surrogate.detach()))
