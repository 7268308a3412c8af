"""Conformance suites: what an objective, a kernel or a host of a third party must keep.

Call them from a test of your own::

    from dft_plugin.testing import check_objective


    def test_mine_conforms():
        check_objective(Mine())
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dft_plugin.config.hosts import Conflict, Host
from dft_plugin.config.settings import RESERVED_KERNELS, Settings
from dft_plugin.kernels import Head, Kernel, KernelResult, Transform, reference
from dft_plugin.objectives import DFT, NLL, Objective

_ROWS, _HIDDEN, _VOCAB = 150, 24, 301


def check_objective(objective: Objective | type[Objective]) -> None:
    """Check an objective: described, detached, finite, and the same for a token in any company.

    Args:
        objective: one with options set, or a class, which is taken with its defaults.

    Raises:
        AssertionError: says what does not hold.
    """
    if isinstance(objective, type):
        objective = objective()
    for attribute in ("name", "summary", "source"):
        assert getattr(objective, attribute, None), f"{type(objective).__name__} has no {attribute}"
    assert not hasattr(Settings, objective.name), f"the name {objective.name!r} is a setting"
    for field, info in type(objective).model_fields.items():
        assert info.description, f"option {field} has no description"
        assert field not in Settings.model_fields, f"option {field} is a setting of ours"
    hidden_TD, head, targets_T = _problem(torch.float64)
    whole = reference(hidden_TD, head, targets_T, objective)
    assert not whole.weight_T.requires_grad, "weights must be detached"
    assert whole.weight_T.shape == targets_T.shape, "one weight for each token"
    assert bool(whole.weight_T.isfinite().all()), "weights must be finite"
    first = reference(hidden_TD[:7], head, targets_T[:7], objective)
    assert torch.allclose(first.weight_T, whole.weight_T[:7]), "a weight depends on other tokens"


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
    empty = kernel(hidden_TD, head, targets_T[:0], DFT(), needs=frozenset(), scratch_bytes=1 << 20)
    assert empty.loss_sum.item() == 0, "no tokens: a zero"
    assert empty.loss_sum.requires_grad, "no tokens: a zero that is connected to the graph"


def check_host(host: Host, config: Mapping[str, Any], foreign: Mapping[str, Any]) -> None:
    """Check a host: described, tells its own configs, reads without changing them.

    Args:
        host: the host.
        config: a config of its own, as parsed from YAML, without `loss`.
        foreign: a config of another host.

    Raises:
        AssertionError: says what does not hold.
    """
    for attribute in ("name", "distribution", "tested", "install"):
        assert getattr(host, attribute, None), f"{type(host).__name__} has no {attribute}"
    before = repr(config)
    assert host.recognise(config), "it does not recognise its own config"
    assert not host.recognise(foreign), "it recognises a foreign config"
    for conflict in host.conflicts(config):
        assert isinstance(conflict, Conflict)
        assert conflict.remedy, f"the conflict of {conflict.key} says no remedy"
    host.replaces(config, Settings(name="dft"))
    assert repr(config) == before, "it changed the config"
    assert host.version_problem() is None or host.install in str(host.version_problem())


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
    result = kernel(hidden_TD, head, targets_T, objective, needs=frozenset(), scratch_bytes=1 << 20)
    torch.autograd.backward(result.loss_sum / len(targets_T))
    return result, {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def _assert_close(ours: torch.Tensor, truth: torch.Tensor, tolerance: float, what: str) -> None:
    error = (ours.detach().double() - truth.detach().double()).norm() / truth.detach().double().norm()
    assert error <= tolerance, f"{what} is off by {float(error):.1e} relative (allowed: {tolerance:.0e})"
