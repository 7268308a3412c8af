"""Rows of logits start on 16 bytes on an accelerator, and no number depends on it."""

from __future__ import annotations

import pytest
import torch
from support import oracle, problems

from dft_plugin.kernels import Head, Transform, allocation, chunked, sweep
from dft_plugin.kernels.rows import block_rows
from dft_plugin.objectives import DFT

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("V", [1, 7, 8, 50257, 128257, 151936])
def test_each_row_on_an_accelerator_starts_on_16_bytes(V, dtype):
    rows_CV = allocation.new_rows(torch.empty(V, 2, dtype=dtype, device="meta"), 3)
    assert rows_CV.shape == (3, V)
    assert rows_CV.stride(0) * dtype.itemsize % 16 == 0
    assert rows_CV.stride(1) == 1
    assert rows_CV.stride(0) - V < 16 // dtype.itemsize


def test_on_a_cpu_they_lie_one_after_the_other():
    assert allocation.new_rows(torch.empty(7, 2), 3).is_contiguous()


@pytest.mark.parametrize("V", [2, 50257, 128257, 10**9])
def test_blocks_of_logits_that_exist_start_there_too(V):
    for itemsize in (2, 4):
        assert block_rows("cuda", V) * V * itemsize % 16 == 0


@pytest.mark.parametrize("shape", problems.ODD_SHAPES)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_rows_that_are_padded_give_the_same_numbers(monkeypatch, shape, dtype):
    made = problems.problem(shape, dtype=dtype, bias=True, rank=2)
    head = Head(made.weight_VD, made.bias_V, Transform(0.5, 30.0))

    def scored():
        loss_sum = chunked(made.hidden_TD, head, made.targets_T, DFT(), scratch_bytes=1).loss_sum
        return [loss_sum, *torch.autograd.grad(loss_sum, made.inputs[:3])]

    plain = scored()

    def new_rows(like_VD, rows):
        width = allocation.padded(like_VD.shape[0] + 1, like_VD.dtype)
        # Nobody may read what fills a row up.
        return like_VD.new_full((rows, width), torch.nan)[:, : like_VD.shape[0]]

    monkeypatch.setattr(sweep, "new_rows", new_rows)
    for ours, theirs in zip(scored(), plain, strict=True):
        assert oracle.gap(ours, theirs) <= (1e-6 if dtype == torch.float32 else 4e-3)
