"""What a kernel must keep. Shapes: T scored tokens, D hidden size, V vocabulary."""

from __future__ import annotations

import torch

from dft_plugin.config.settings import RESERVED_KERNELS
from dft_plugin.kernels import Head, Kernel, KernelResult, Transform, reference
from dft_plugin.objectives import DFT, NLL, Objective, Targets

_ROWS, _HIDDEN, _VOCAB = 150, 24, 301


def check_kernel(kernel: Kernel) -> None:
    """Check a kernel against the naive one in float64: value, statistics, gradients, no tokens at all.

    Raises:
        AssertionError: says what does not hold.
    """
    assert kernel.__name__ not in RESERVED_KERNELS, f"{kernel.__name__} is reserved"
    for objective in (NLL(), DFT(), DFT(alpha=0.5, floor=0.1)):
        for transform in (Transform(), Transform(scale=0.5, softcap=3.0)):
            expected, truth = _gradients(reference, torch.float64, objective, transform)
            result, ours = _gradients(kernel, torch.float32, objective, transform)
            _assert_close(result.loss_sum, expected.loss_sum, 1e-6, "loss_sum")
            _assert_close(result.rows.logp_T, expected.rows.logp_T, 1e-5, "logp_T")
            _assert_close(result.weight_T, expected.weight_T, 1e-5, "weight_T")
            for name in truth:
                _assert_close(ours[name], truth[name], 1e-5, f"the gradient of {name}")
    hidden_TD, head, targets_T = _problem(torch.float32)
    hidden_TD = hidden_TD[:0].requires_grad_()
    empty = kernel(hidden_TD, head, Targets(targets_T[:0]), DFT(), needs=frozenset(), scratch_bytes=1 << 20)
    assert empty.loss_sum.item() == 0, "no tokens: a zero"
    assert empty.loss_sum.requires_grad, "no tokens: a zero that is connected to the graph"


def _problem(dtype: torch.dtype) -> tuple[torch.Tensor, Head, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight_VD = torch.randn(_VOCAB, _HIDDEN, generator=generator, dtype=torch.float64)
    targets_T = torch.randint(0, _VOCAB, (_ROWS,), generator=generator)
    # From tokens that are near impossible to tokens that are near certain.
    pull_T1 = torch.linspace(-0.5, 1.5, _ROWS, dtype=torch.float64)[:, None]
    hidden_TD = weight_VD[targets_T] * pull_T1
    bias_V = torch.randn(_VOCAB, generator=generator, dtype=torch.float64)
    return hidden_TD.to(dtype), Head(weight_VD.to(dtype), bias_V.to(dtype)), targets_T


def _gradients(
    kernel: Kernel, dtype: torch.dtype, objective: Objective, transform: Transform
) -> tuple[KernelResult, dict[str, torch.Tensor]]:
    hidden_TD, head, targets_T = _problem(dtype)
    assert head.bias_V is not None
    leaves = {"hidden": hidden_TD, "weight": head.weight_VD, "bias": head.bias_V}
    for leaf in leaves.values():
        leaf.requires_grad_()
    head = Head(head.weight_VD, head.bias_V, transform)
    result = kernel(hidden_TD, head, Targets(targets_T), objective, needs=frozenset(), scratch_bytes=1 << 20)
    torch.autograd.backward(result.loss_sum / len(targets_T))
    return result, {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def _assert_close(ours: torch.Tensor, truth: torch.Tensor, tolerance: float, what: str) -> None:
    error = (ours.detach().double() - truth.detach().double()).norm() / truth.detach().double().norm()
    assert error <= tolerance, f"{what} is off by {float(error):.1e} relative (allowed: {tolerance:.0e})"
