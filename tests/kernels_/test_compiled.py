"""The pointwise part as an accelerator runs it: compiled, here for the CPU by the same compiler."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from support import problems
from support.scored import tensors_of

from dft_plugin.kernels import Head, Transform, chunked, rows, scoring, softmax
from dft_plugin.kernels.compiled import CompiledScorer
from dft_plugin.objectives import DFT, Targets

EVERYTHING = frozenset({"entropy", "sum_p_squared"})


TANHS_AGREE = not torch.__version__.startswith("2.8.")
"""Inductor of 2.8 takes the maximum of a row by a vector's tanh, on this CPU, and the target's logit by another, which
may be a unit in the last place below. Nothing but a test compiles for a CPU."""


def compiling(test):
    """Mark a test that runs the compiler, which warns of torch's own deprecated internals."""
    test = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")(test)
    return pytest.mark.slow(pytest.mark.filterwarnings("ignore::DeprecationWarning")(test))


@compiling
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("transform", [Transform(), Transform(0.5, 5.0)], ids=["plain", "capped"])
def test_compiled_it_gives_the_same_numbers(transform, dtype):
    compiled = torch.compile(softmax.score_block_, dynamic=True)
    for T, V in ((5, 37), (8, 64)):
        logits, targets = problems.logits_with_probability(1 - 1e-6, T=T, V=V)
        logits = logits.to(dtype)
        ours, theirs = logits.clone(), logits.clone()
        one = compiled(ours, targets, transform, EVERYTHING)
        other = softmax.score_block_(theirs, targets, transform, EVERYTHING)
        for name in ("logp_T", "one_minus_p_T", "entropy_T", "sum_p_squared_T"):
            torch.testing.assert_close(getattr(one.rows, name), getattr(other.rows, name), rtol=2e-6, atol=1e-9)
        if transform.softcap is None or TANHS_AGREE:
            assert torch.equal(one.rows.is_top1_T, other.rows.is_top1_T)
        torch.testing.assert_close(one.inverse_norm_T, other.inverse_norm_T)
        torch.testing.assert_close(ours, theirs, rtol=8 * torch.finfo(dtype).eps, atol=1e-9)


def test_a_kind_of_device_gets_one_scorer_for_all_calls():
    assert scoring.row_scorer("meta") is not scoring.row_scorer("cpu")
    assert scoring.row_scorer("meta") is scoring.row_scorer("meta")


@compiling
def test_it_is_compiled_also_where_the_model_around_it_must_not_be(caplog):
    # An attachment scores under torch.compiler.disable. The `meta` device stands for one that is no CPU.
    scorer = CompiledScorer("meta")
    counters = torch._dynamo.utils.counters
    counters.clear()
    torch.compiler.disable(lambda: scorer(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), Transform()))()
    assert counters["stats"]["unique_graphs"] == 1
    assert "going on without it" not in caplog.text


@compiling
def test_what_has_to_be_compiled_again_may_fail_as_well(monkeypatch, caplog):
    compile_, graphs = torch.compile, []

    def backend(graph, inputs):
        graphs.append(graph)
        if len(graphs) > 1:
            raise RuntimeError("no room in shared memory")
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend=backend, **options))
    scorer = CompiledScorer("meta")
    logits, targets = problems.logits_with_probability(0.3)
    expected = scorer(logits.clone(), targets, Transform())
    # The same call, but autocast is something that is compiled for.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = scorer(logits, targets, Transform())
    assert len(graphs) == 2
    torch.testing.assert_close(again.rows.logp_T, expected.rows.logp_T)
    assert "going on without it: backend='backend' raised: RuntimeError: no room in shared memory" in caplog.text


def test_a_cpu_gets_it_as_it_is(monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    logits, targets = problems.logits_with_probability(0.3)
    expected = softmax.score_block_(logits.clone(), targets, Transform())
    assert torch.equal(scoring.row_scorer("cpu")(logits, targets, Transform()).rows.logp_T, expected.rows.logp_T)


NO_KERNEL = RuntimeError("PassManager::run failed\nfor sm_70")


def compiler(monkeypatch, fails, error=NO_KERNEL):
    """Stand in for torch.compile: a call that `fails` writes half of its buffer first. Returns the calls."""
    calls = []

    def compile_(function, **options):
        def call(logits, targets, transform, needs, **options):
            calls.append(tuple(logits.shape))
            if fails(logits, transform, needs):
                logits[:, ::2] = 7.0
                raise error
            return function(logits, targets, transform, needs, **options)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    # On tensors of the CPU: what follows is about the compiler, not about the device.
    scorer = scoring.RowScorer("meta", CompiledScorer("meta"), fused=False)
    monkeypatch.setattr(scoring, "row_scorer", lambda device_type: scorer)
    return calls


LATE = {
    "at once": lambda logits, transform, needs: True,
    "dtype": lambda logits, transform, needs: logits.dtype == torch.bfloat16,
    "softcap": lambda logits, transform, needs: transform.softcap is not None,
    "needs": lambda logits, transform, needs: bool(needs),
    "shape": lambda logits, transform, needs: logits.shape[0] == 5,
}


def asked_for_everything(dtype=torch.bfloat16):
    """Loss, gradients and statistics of 5 tokens, after 7 with no option at all."""
    plain = problems.problem((7, 3, 11))
    chunked(plain.hidden_TD, Head(plain.weight_VD), Targets(plain.targets_T), DFT()).loss_sum.backward()
    made = problems.problem((5, 3, 11), dtype=dtype, softcap=5.0)
    head = Head(made.weight_VD, transform=Transform(1.0, 5.0))
    result = chunked(made.hidden_TD, head, Targets(made.targets_T), DFT(), needs=EVERYTHING)
    return [*tensors_of(result.rows), *torch.autograd.grad(result.loss_sum, made.inputs)]


@pytest.mark.parametrize("late", LATE)
def test_a_compiler_may_fail_at_any_call_and_the_numbers_stay(monkeypatch, caplog, late):
    expected = asked_for_everything()
    calls = compiler(monkeypatch, LATE[late])
    with caplog.at_level(logging.WARNING):
        assert all(map(torch.equal, asked_for_everything(), expected))
        tried = len(calls)
        assert all(map(torch.equal, asked_for_everything(), expected))
    assert len(calls) == tried == (1 if late == "at once" else 2), "given up for good"
    assert [record.getMessage() for record in caplog.records] == [
        "dft: torch.compile does not work on meta, going on without it: PassManager::run failed"
    ]


def test_where_there_is_no_compiler_at_all_it_runs_as_it_is(monkeypatch, caplog):
    def refuse(function, **options):
        raise RuntimeError("torch.compile is not supported on this Python")

    monkeypatch.setattr(torch, "compile", refuse)
    logits, targets = problems.logits_with_probability(0.3)
    expected = softmax.score_block_(logits.clone(), targets, Transform())
    ours = CompiledScorer("meta")(logits, targets, Transform())
    assert torch.equal(ours.rows.logp_T, expected.rows.logp_T)
    assert "not supported on this Python" in caplog.text


def test_running_out_of_memory_is_no_failure_of_the_compiler(monkeypatch, caplog):
    full = [True]
    calls = compiler(monkeypatch, lambda *_: full[0], torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        asked_for_everything()
    full[0] = False
    asked_for_everything()
    assert len(calls) == 3
    assert not caplog.records


def test_a_failure_that_the_plain_code_has_as_well_is_raised_and_not_the_compilers(monkeypatch, caplog):
    calls = compiler(monkeypatch, lambda *_: False)
    scorer = scoring.row_scorer("meta")
    logits, _ = problems.logits_with_probability(0.3, T=3, V=11)
    with pytest.raises(RuntimeError, match="index 11 is out of bounds"):
        scorer(logits.clone(), torch.tensor([0, 11, 1]), Transform())
    scorer(logits, torch.tensor([0, 10, 1]), Transform())
    assert len(calls) == 2
    assert not caplog.records


def test_a_call_that_ran_before_fails_for_another_reason_and_raises(monkeypatch, caplog):
    broken = [False]
    compiler(monkeypatch, lambda *_: broken[0], RuntimeError("CUDA error: unspecified launch failure"))
    asked_for_everything()
    broken[0] = True
    with pytest.raises(RuntimeError, match="launch failure"):
        asked_for_everything()
    assert not caplog.records


def test_blocks_of_an_accelerator_are_larger():
    assert rows.block_rows("cpu", 151_936) == 3
    assert rows.block_rows("cuda", 151_936) == 104
    assert rows.block_rows("cpu", 1 << 22) == 1
