"""What this project computes, called as an attached model calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from benchmarks.problem import HiddenInputs, LogitsInputs
from dft_plugin.core import targets
from dft_plugin.core.loss import LossResult, hidden_loss, logits_loss
from dft_plugin.kernels import Head, LowRank, score_logits_
from dft_plugin.plans import plan_for


def _scorer(
    kernel: str, needs: frozenset[Any] = frozenset(), scratch_mb: int | None = None
) -> Callable[[HiddenInputs], LossResult]:
    plan = plan_for({"name": "dft", "kernel": kernel, "scratch_mb": scratch_mb})
    plan = replace(plan, needs=plan.needs | needs)

    def score(inputs: HiddenInputs) -> LossResult:
        low_rank = None
        if inputs.input_NR is not None and inputs.weight_VR is not None:
            kept_N = inputs.labels_N != targets.IGNORE_INDEX
            low_rank = LowRank(inputs.input_NR[kept_N], inputs.weight_VR)
        head = Head(inputs.weight_VH, low_rank=low_rank)
        return hidden_loss(plan, inputs.hidden_NH, head, inputs.labels_N)

    return score


def lean(kernel: str, scratch_mb: int | None = None) -> Callable[[HiddenInputs], Tensor]:
    """The loss of one micro-batch with the named kernel."""
    score = _scorer(kernel, scratch_mb=scratch_mb)
    return lambda inputs: score(inputs).mean()


def with_stats(kernel: str) -> Callable[[HiddenInputs], Tensor]:
    """The same, and the sums that the log shows: nll, p, w."""
    score = _scorer(kernel)

    def loss(inputs: HiddenInputs) -> Tensor:
        result = score(inputs)
        result.stats()
        return result.mean()

    return loss


def with_entropy(kernel: str) -> Callable[[HiddenInputs], Tensor]:
    """The same, and the entropy of every row, which a host may ask for."""
    score = _scorer(kernel, frozenset({"entropy"}))
    return lambda inputs: score(inputs).mean()


def logits_kept() -> Callable[[LogitsInputs], Tensor]:
    """The logits path, where someone reads the logits afterwards."""
    plan = plan_for("dft")
    return lambda inputs: logits_loss(plan, inputs.logits_NV, inputs.labels_N).mean()


def logits_overwritten() -> Callable[[LogitsInputs], Tensor]:
    """The logits path, where nobody does."""
    plan = plan_for("dft")
    return lambda inputs: logits_loss(plan, inputs.logits_NV, inputs.labels_N, kernel=score_logits_).mean()
