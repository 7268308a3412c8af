"""Rows of logits start on 16 bytes, and no number depends on it."""

from __future__ import annotations

import pytest
import torch
from support import oracle, problems
from torch.utils._python_dispatch import TorchDispatchMode

from dft_plugin.kernels import Head, Transform, allocation, blocked, chunked, sweep
from dft_plugin.kernels.rows import block_rows
from dft_plugin.objectives import DFT, Targets

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("V", [1, 7, 8, 50257, 128257, 151936])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_each_row_starts_on_16_bytes(V, dtype, device):
    rows_CV = allocation.new_rows(torch.empty(V, 2, dtype=dtype, device=device), 3)
    assert rows_CV.shape == (3, V)
    assert rows_CV.stride(0) * dtype.itemsize % 16 == 0
    assert rows_CV.stride(1) == 1
    assert rows_CV.stride(0) - V < 16 // dtype.itemsize


class Strides(TorchDispatchMode):
    """Notes how far apart the rows are that matrix products write."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.out:
            self.seen.add(kwargs["out"].stride(0))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernel", [blocked, chunked])
@pytest.mark.parametrize("tokens", [600, 793, 2049])
def test_products_write_rows_that_start_there_whatever_the_numbers_of_tokens_and_of_the_vocabulary(kernel, tokens):
    # More than a block, of which the last is odd.
    head = Head(torch.randn(9001, 2))
    with Strides() as strides, torch.no_grad():
        kernel(torch.randn(tokens, 2), head, Targets(torch.zeros(tokens, dtype=torch.long)), DFT())
    assert strides.seen
    assert all(stride % 4 == 0 for stride in strides.seen)


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
        loss_sum = chunked(made.hidden_TD, head, Targets(made.targets_T), DFT(), scratch_bytes=1).loss_sum
        return [loss_sum, *torch.autograd.grad(loss_sum, made.inputs[:3])]

    plain = scored()

    def new_rows(like_VD, rows):
        width = allocation.padded(like_VD.shape[0] + 1, like_VD.dtype)
        # Nobody may read what fills a row up.
        return like_VD.new_full((rows, width), torch.nan)[:, : like_VD.shape[0]]

    monkeypatch.setattr(sweep, "new_rows", new_rows)
    for ours, theirs in zip(scored(), plain, strict=True):
        assert oracle.gap(ours, theirs) <= (1e-6 if dtype == torch.float32 else 4e-3)
