"""The conformance suites of kernels and hosts accept what conforms, and can say no."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dft_plugin.kernels import chunked, reference
from dft_plugin.testing import check_kernel


@pytest.mark.parametrize("kernel", [chunked, reference], ids=lambda kernel: kernel.__name__)
def test_shipped_kernels_conform(kernel):
    check_kernel(kernel)


def test_a_kernel_that_forgets_the_detach_is_found():
    def leaky(hidden_TD, head, targets, objective, *, needs, scratch_bytes):
        right = reference(hidden_TD, head, targets, objective)
        logits_TV = head.transform(hidden_TD @ head.weight_VD.t() + head.bias_V)
        logp_T = logits_TV.log_softmax(-1).gather(1, targets.ids_T[:, None])[:, 0]
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
