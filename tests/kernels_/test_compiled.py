"""The pointwise part as an accelerator runs it: compiled, here for the CPU by the same compiler."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from support import problems

from dft_plugin.kernels import Transform, rows, softmax

EVERYTHING = frozenset({"entropy", "sum_p_squared"})


def compiling(test):
    """Mark a test that runs the compiler, which warns of torch's own deprecated internals."""
    test = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")(test)
    return pytest.mark.slow(pytest.mark.filterwarnings("ignore::DeprecationWarning")(test))


@pytest.fixture(autouse=True)
def forget():
    softmax.block_scorer.cache_clear()
    yield
    softmax.block_scorer.cache_clear()


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
        assert torch.equal(one.rows.is_top1_T, other.rows.is_top1_T)
        torch.testing.assert_close(one.inverse_norm_T, other.inverse_norm_T)
        torch.testing.assert_close(ours, theirs, rtol=8 * torch.finfo(dtype).eps, atol=1e-9)


@compiling
def test_an_accelerator_gets_it_compiled():
    # The `meta` device stands for one: it runs no kernel, but is no CPU.
    assert softmax.block_scorer("meta") is not softmax.score_block_
    assert softmax.block_scorer("meta") is softmax.block_scorer("meta")


@compiling
def test_it_is_compiled_also_where_the_model_around_it_must_not_be():
    # An attachment scores under torch.compiler.disable.
    compiled = torch.compile(softmax.score_block_, dynamic=True)
    counters = torch._dynamo.utils.counters
    counters.clear()
    torch.compiler.disable(lambda: compiled(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), Transform()))()
    assert counters["stats"]["unique_graphs"] == 1


def test_a_cpu_gets_it_as_it_is():
    assert softmax.block_scorer("cpu") is softmax.score_block_


def test_without_a_working_compiler_it_runs_as_it_is_and_says_so_once(monkeypatch, caplog):
    def broken(function, **options):
        def call(*args):
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC.")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.WARNING):
        assert softmax.block_scorer("meta") is softmax.score_block_
        assert softmax.block_scorer("meta") is softmax.score_block_
    assert [record.getMessage() for record in caplog.records] == [
        "dft: torch.compile does not work on meta, going on without it: Failed to find C compiler."
    ]


def test_blocks_of_an_accelerator_are_larger():
    assert rows.block_rows("cpu", 151_936) == 3
    assert rows.block_rows("cuda", 151_936) == 110
    assert rows.block_rows("cpu", 1 << 22) == 1
