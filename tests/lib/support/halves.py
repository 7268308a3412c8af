"""Problems in float16 and bfloat16 under a loss scale, and autograd's textbook to compare with.

`python halves.py` prints the table of docs/kernels.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from dft_plugin.kernels import Head, LowRank, OpaqueHead, Transform, blocked, chunked, opaque
from dft_plugin.objectives import DFT, Objective, Targets
from support import oracle, problems
from support.problems import Problem

D, V = 64, 101
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "vocab": {"bias": True, "scale": 0.5, "softcap": 30.0},
    "all": {"bias": True, "rank": 2, "scale": 0.5, "softcap": 30.0},
}
SCALES = (1.0, 1024.0, 65536.0)
PROBABILITIES = (1e-7, 1e-4, 0.5, 1 - 1e-4)

A_LITTLE = {torch.float16: 4e-4, torch.bfloat16: 3.2e-3}
"""Under half a unit in the last place: the textbook rounds twice, a kernel a third time."""


def problem(p: float | str, *, T: int = 64, dtype: torch.dtype = torch.float16, **changes: Any) -> Problem:
    """Tensors of half precision whose targets have about probability `p`, or all from 1e-7 to 0.8."""
    made = problems.problem((T, D, V), **changes)
    wanted_T = torch.logspace(-7, -0.1, T, dtype=torch.float64) if p == "all" else torch.full((T,), p).double()
    with torch.no_grad():
        made.weight_VD.mul_(0.1)
        made.hidden_TD.mul_(0.5)
        along_TD = made.weight_VD[made.targets_T]
        along_TD = along_TD / along_TD.square().sum(1, keepdim=True)
        for _ in range(60):
            logp_T = oracle.log_probabilities(made.logits(), made.targets_T)
            missing_T = torch.logit(wanted_T) - logp_T + (-logp_T.expm1()).log()
            made.hidden_TD.add_(missing_T.clamp(-1, 1).float()[:, None] * along_TD)
    assert missing_T.abs().max() < 0.5
    return in_dtype(made, dtype)


def in_dtype(made: Problem, dtype: torch.dtype) -> Problem:
    leaves = iter([tensor.detach().to(dtype).requires_grad_() for tensor in made.inputs])
    hidden_TD, weight_VD = next(leaves), next(leaves)
    bias_V = None if made.bias_V is None else next(leaves)
    low_rank = None if made.low_rank is None else (next(leaves), next(leaves))
    return Problem(hidden_TD, made.targets_T, weight_VD, bias_V, low_rank, made.scale, made.softcap)


def head_of(made: Problem) -> Head:
    low_rank = LowRank(*made.low_rank) if made.low_rank else None
    return Head(made.weight_VD, made.bias_V, Transform(made.scale, made.softcap), low_rank)


def raw_logits(made: Problem, hidden_TD: Tensor) -> Tensor:
    logits_TV = F.linear(hidden_TD, made.weight_VD, made.bias_V)
    return logits_TV if made.low_rank is None else logits_TV + made.low_rank[0] @ made.low_rank[1].t()


def read(made: Problem, objective: Objective) -> Tensor:
    return chunked(made.hidden_TD, head_of(made), Targets(made.targets_T), objective).loss_sum


def called(made: Problem, objective: Objective) -> Tensor:
    transform, inputs = Transform(made.scale, made.softcap), tuple(made.inputs[1:])
    head = OpaqueHead(lambda hidden_TD: raw_logits(made, hidden_TD), V, transform, inputs)
    return opaque(made.hidden_TD, head, Targets(made.targets_T), objective).loss_sum


def through_blocks(made: Problem, objective: Objective) -> Tensor:
    return blocked(made.hidden_TD, head_of(made), Targets(made.targets_T), objective).loss_sum


def textbook(made: Problem, objective: Any) -> Tensor:
    """As hosts write it: logits in half precision, the softmax in float32, everything else left to autograd."""
    logits_TV = raw_logits(made, made.hidden_TD)
    nll_T = F.cross_entropy(Transform(made.scale, made.softcap)(logits_TV.float()), made.targets_T, reduction="none")
    return ((-objective.alpha * nll_T.detach()).exp() * nll_T).sum()


def gaps(loss_sum: Tensor, made: Problem, truths: list[Tensor], scale: float, num_items: int) -> list[float]:
    """How far gradients are from the truth, as a part of it; those that float16 cannot hold are left out."""
    inputs = [tensor for tensor in made.inputs if tensor.requires_grad]
    gradients = torch.autograd.grad(loss_sum / num_items * scale, inputs)
    truths = [truth * (scale / num_items) for truth in truths[: len(inputs)]]
    return [
        oracle.gap(ours, truth) if truth.abs().max() < 65504 else 0.0
        for ours, truth in zip(gradients, truths, strict=True)
    ]


def truths_of(made: Problem, weight: oracle.Weight = oracle.dft) -> list[Tensor]:
    """Gradients of the sum, in float64."""
    _, *means = in_dtype(made, torch.float64).truth(weight)
    return [made.targets_T.numel() * mean for mean in means]


def table(dtype: torch.dtype, scale: float = 65536.0, T: int = 4096) -> list[str]:
    """Rows of a table: errors of the hidden states' gradient and of the weight's, ours beside the textbook's."""
    lines = []
    for alpha in (1.0, 2.0):
        for p in (*PROBABILITIES, "all"):
            made = problem(p, T=T, dtype=dtype)
            truths = truths_of(made, oracle.family(alpha))
            hidden, weight = zip(
                *(gaps(way(made, DFT(alpha=alpha)), made, truths, scale, T) for way in (textbook, read, called)),
                strict=True,
            )
            made.weight_VD.requires_grad_(False)
            frozen = gaps(through_blocks(made, DFT(alpha=alpha)), made, truths, scale, T)
            cells = [f"{gap:.1e}" for gap in (*hidden, *frozen, *weight)]
            name = "1e-7 to 0.8" if p == "all" else f"{p:g}"
            lines.append("| " + " | ".join([str(dtype).removeprefix("torch."), name, f"{alpha:g}", *cells]) + " |")
    return lines


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write("\n".join([*table(torch.float16), *table(torch.bfloat16), ""]))
