"""A Triton kernel that is missing, fails or is wrong costs one warning, and nothing else."""

from __future__ import annotations

import sys

import pytest
import torch
from support import fused, problems
from support.fused import warnings_of
from support.scored import tensors_of

from dft_plugin.kernels import Head, Transform, chunked, scoring, softmax
from dft_plugin.objectives import DFT, Targets

EVERYTHING = frozenset({"entropy", "sum_p_squared"})
pytestmark = fused.FILTER


def asked_for_everything(device, dtype=torch.bfloat16):
    """Loss, statistics and gradients of 5 tokens, after 7 with no option at all."""
    found = []
    for made, needs in (
        (problems.problem((7, 3, 11)), frozenset()),
        (problems.problem((5, 3, 11), dtype=dtype, softcap=5.0), EVERYTHING),
    ):
        hidden_TD, weight_VD = (tensor.detach().to(device).requires_grad_() for tensor in made.inputs)
        head = Head(weight_VD, transform=Transform(1.0, made.softcap))
        result = chunked(hidden_TD, head, Targets(made.targets_T.to(device)), DFT(), needs=needs)
        found += [result.loss_sum, *tensors_of(result.rows)]
        found += torch.autograd.grad(result.loss_sum, [hidden_TD, weight_VD])
    return found


def expected(monkeypatch, device):
    with monkeypatch.context() as patch:
        scorer = scoring.RowScorer(device, softmax.score_block_, fused=False)
        patch.setattr(scoring, "row_scorer", lambda device_type: scorer)
        return asked_for_everything(device)


def test_without_triton_the_other_code_runs_and_that_is_said_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "dft_plugin.kernels.triton_rows", raising=False)
    monkeypatch.delattr("dft_plugin.kernels.triton_rows", raising=False)
    truth = expected(monkeypatch, "cpu")
    fused.scorer_for("cpu", monkeypatch, softmax.score_block_)
    for _ in range(2):
        assert all(map(torch.equal, asked_for_everything("cpu"), truth))
    (message,) = warnings_of(caplog)
    assert message.startswith("dft: the Triton kernel does not work on cpu, going on without it: ")
    assert "triton" in message.split("without it: ")[1]


def test_without_triton_and_without_a_compiler_the_plain_code_runs(monkeypatch, caplog):
    def refuse(*args, **options):
        raise RuntimeError("Compiler: g++ is not found.")

    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "dft_plugin.kernels.triton_rows", raising=False)
    monkeypatch.delattr("dft_plugin.kernels.triton_rows", raising=False)
    monkeypatch.setattr(torch, "compile", refuse)
    truth = expected(monkeypatch, "cpu")
    fused.scorer_for("cpu", monkeypatch)
    for _ in range(2):
        assert all(map(torch.equal, asked_for_everything("cpu"), truth))
    assert [message.split(" on cpu")[0] for message in warnings_of(caplog)] == [
        "dft: torch.compile does not work",
        "dft: the Triton kernel does not work",
    ]


def test_triton_is_for_cuda_and_xpu_and_a_cpu_goes_on_as_before():
    assert scoring.row_scorer("cuda")._fused
    assert scoring.row_scorer("xpu")._fused
    assert not scoring.row_scorer("meta")._fused
    assert not scoring.row_scorer("cpu")._fused
    assert not scoring.row_scorer("cpu").keeps_dtype


@pytest.fixture
def triton_rows():
    return pytest.importorskip("dft_plugin.kernels.triton_rows", reason="needs triton", exc_type=ImportError)


class RaisingLaunch:
    """The kernel of a GPU whose driver refuses it; counts the launches."""

    def __init__(self, kernel, error, fails=lambda arguments, options: True):
        self.kernel, self.error, self.fails, self.launches = kernel, error, fails, 0

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.launches += 1
            if self.fails(arguments, options):
                raise self.error
            return self.kernel[grid](*arguments, **options)

        return launch


LATE = {
    "at once": lambda arguments, options: True,
    "dtype": lambda arguments, options: arguments[0].dtype == torch.bfloat16,
    "softcap": lambda arguments, options: options["CAP"],
    "statistic": lambda arguments, options: options["ENTROPY"],
}


def close(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2 if one.dtype == torch.bfloat16 else 2e-3, atol=1e-4)


@pytest.mark.parametrize("device", fused.DEVICES)
@pytest.mark.parametrize("late", LATE)
def test_a_launch_that_fails_at_any_call_leaves_the_numbers_right(monkeypatch, caplog, triton_rows, device, late):
    truth = expected(monkeypatch, device)
    error = RuntimeError("Triton Error [CUDA]: invalid argument")
    refused = RaisingLaunch(triton_rows.score_row, error, LATE[late])
    monkeypatch.setattr(triton_rows, "score_row", refused)
    fused.scorer_for(device, monkeypatch, softmax.score_block_)
    close(asked_for_everything(device), truth)
    tried = refused.launches
    close(asked_for_everything(device), truth)
    assert refused.launches == tried > 0, "given up for good"
    assert warnings_of(caplog) == [
        f"dft: the Triton kernel does not work on {device}, going on without it: {error}",
    ]


@pytest.mark.parametrize("device", fused.DEVICES)
def test_a_launch_that_fails_after_it_was_trusted_finds_the_logits_as_they_were(
    monkeypatch, caplog, triton_rows, device
):
    scorer = fused.scorer_for(device, monkeypatch, softmax.score_block_)
    logits_TV, targets_T = problems.logits_with_probability(0.3, T=20, V=33)
    scorer(logits_TV.to(device), targets_T.to(device), Transform())
    assert scorer._trusted
    refused = RaisingLaunch(triton_rows.score_row, RuntimeError("Triton Error [CUDA]: too many resources requested"))
    monkeypatch.setattr(triton_rows, "score_row", refused)
    ours_TV, theirs_TV = logits_TV.to(device).clone(), logits_TV.to(device).clone()
    ours = scorer(ours_TV, targets_T.to(device), Transform())
    theirs = softmax.score_block_(theirs_TV, targets_T.to(device), Transform())
    assert refused.launches == 1
    assert torch.equal(ours_TV, theirs_TV)
    assert torch.equal(ours.rows.logp_T, theirs.rows.logp_T)
    assert "too many resources" in caplog.text


@pytest.mark.parametrize("device", fused.DEVICES)
def test_a_kernel_that_does_not_compile_leaves_the_numbers_right(monkeypatch, caplog, triton_rows, device):
    # Triton itself refuses it: the columns of a program are to be a power of 2.
    monkeypatch.setattr(triton_rows, "launch_for", lambda *_: triton_rows.Launch(1000, 4))
    truth = expected(monkeypatch, device)
    fused.scorer_for(device, monkeypatch, softmax.score_block_)
    for _ in range(2):
        close(asked_for_everything(device), truth)
    (message,) = warnings_of(caplog)
    assert message.startswith(f"dft: the Triton kernel does not work on {device}, going on without it: ")
    assert "power of 2" in message


@pytest.mark.parametrize("device", fused.DEVICES)
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("Triton Error [CUDA]: out of memory"), MemoryError()],
    ids=["torch", "driver", "host"],
)
def test_running_out_of_memory_is_passed_on_and_is_no_failure_of_the_kernel(
    monkeypatch, caplog, triton_rows, device, error
):
    kernel = triton_rows.score_row
    monkeypatch.setattr(triton_rows, "score_row", RaisingLaunch(kernel, error))
    scorer = fused.scorer_for(device, monkeypatch, softmax.score_block_)
    with pytest.raises(type(error)):
        asked_for_everything(device)
    monkeypatch.setattr(triton_rows, "score_row", kernel)
    asked_for_everything(device)
    assert len(scorer._trusted) == 2
    assert not warnings_of(caplog)


@pytest.mark.parametrize("device", fused.DEVICES)
def test_float64_goes_to_the_other_code_without_a_word(monkeypatch, caplog, triton_rows, device):
    scorer = fused.scorer_for(device, monkeypatch, softmax.score_block_)
    logits_TV, targets_T = problems.logits_with_probability(0.3, T=4, V=33)
    scored = scorer(logits_TV.double().to(device), targets_T.to(device), Transform())
    assert scored.rows.logp_T.dtype == torch.float64
    scorer(logits_TV.to(device), targets_T.to(device), Transform())
    assert len(scorer._trusted) == 1
    assert not warnings_of(caplog)


@pytest.mark.parametrize("device", fused.DEVICES)
def test_what_the_other_code_cannot_do_either_is_raised_and_not_the_kernels(monkeypatch, caplog, triton_rows, device):
    scorer = fused.scorer_for(device, monkeypatch, softmax.score_block_)
    logits_TV, targets_T = problems.logits_with_probability(0.3, T=4, V=33)
    with pytest.raises(RuntimeError, match="same number of dimensions"):
        scorer(logits_TV.to(device), targets_T.to(device)[:, None, None], Transform())
    scorer(logits_TV.to(device), targets_T.to(device), Transform())
    assert scorer._trusted
    assert not warnings_of(caplog)
