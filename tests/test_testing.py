"""The conformance suites accept what conforms, and each can say no."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from dft_plugin.kernels import chunked, reference
from dft_plugin.objectives import DFT, NLL, Objective
from dft_plugin.testing import check_kernel, check_objective


@pytest.mark.parametrize("objective", [NLL(), DFT(), DFT(alpha=0.3, floor=0.2)], ids=repr)
def test_shipped_objectives_conform(objective):
    check_objective(objective)


@pytest.mark.parametrize("kernel", [chunked, reference], ids=lambda kernel: kernel.__name__)
def test_shipped_kernels_conform(kernel):
    check_kernel(kernel)


def test_a_class_is_taken_with_its_defaults():
    check_objective(DFT)


def test_a_weight_that_depends_on_other_tokens_is_found():
    class Ranked(Objective):
        name: ClassVar[str] = "ranked"
        summary: ClassVar[str] = "w = p / max p"
        source: ClassVar[str] = "none"

        def weight(self, rows):
            return (rows.logp_T - rows.logp_T.max()).exp()

    with pytest.raises(AssertionError, match="depends on other tokens"):
        check_objective(Ranked())


def test_an_infinite_weight_is_found():
    class Inverse(Objective):
        name: ClassVar[str] = "inverse"
        summary: ClassVar[str] = "w = 1 / (1 - p)"
        source: ClassVar[str] = "none"

        def weight(self, rows):
            return 1 / torch.zeros_like(rows.logp_T)

    with pytest.raises(AssertionError, match="finite"):
        check_objective(Inverse())


def test_an_undescribed_objective_is_found():
    class Nameless(DFT):
        summary: ClassVar[str] = ""

    with pytest.raises(AssertionError, match="no summary"):
        check_objective(Nameless())


def test_a_kernel_that_forgets_the_detach_is_found():
    def leaky(hidden_TD, head, targets_T, objective, *, needs, scratch_bytes):
        right = reference(hidden_TD, head, targets_T, objective)
        logits_TV = head.transform(hidden_TD @ head.weight_VD.t() + head.bias_V)
        logp_T = logits_TV.log_softmax(-1).gather(1, targets_T[:, None])[:, 0]
        weight_T = objective.weight(replace(right.rows, logp_T=logp_T))
        return replace(right, loss_sum=-(weight_T * logp_T).sum())

    with pytest.raises(AssertionError, match="gradient of hidden"):
        check_kernel(leaky)


def test_a_kernel_that_returns_a_mean_is_found():
    def mean(*args, **kwargs):
        result = reference(*args, **kwargs)
        return replace(result, loss_sum=result.loss_sum / max(len(args[2]), 1))

    with pytest.raises(AssertionError, match="loss_sum"):
        check_kernel(mean)
