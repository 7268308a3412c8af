"""How many rows of logits exist at a time, and in which dtype a GEMM runs."""

from __future__ import annotations

import pytest
import torch
from support.counting import WatchMemory

from dft_plugin.kernels import Head, LowRank, budget, chunked, gemm
from dft_plugin.objectives import DFT, Targets

MIB = 1 << 20


@pytest.mark.parametrize(
    ("device_type", "scratch", "trained", "rows"),
    [
        ("cpu", None, False, 69),
        ("cpu", None, True, 517),
        ("cpu", 1, False, 64),
        ("cpu", 1 << 40, False, 1024),
        ("cuda", None, False, 512),
        ("cuda", None, True, 512),
        ("cuda", 1, True, 256),
        ("cuda", 1 << 40, True, 4096),
    ],
)
def test_a_chunk_fits_its_budget(device_type, scratch, trained, rows):
    # Qwen2.5's 151,936 tokens in float32; 517 rows of them are 300 MiB, of which 512 are whole tiles.
    found = budget.chunk_rows(device_type, 4 * 151_936, scratch, tokens=1000 * rows, weight_trained=trained)
    assert found == rows


@pytest.mark.parametrize(
    ("device_type", "tokens", "rows"),
    [
        ("cpu", 0, 1),
        ("cpu", 1, 1),
        ("cpu", 517, 517),
        ("cpu", 518, 259),
        ("cpu", 2048, 512),
        ("cuda", 1, 128),
        ("cuda", 512, 512),
        ("cuda", 513, 384),
        ("cuda", 2048, 512),
    ],
)
def test_chunks_are_of_one_size_and_no_more_of_them_for_it(device_type, tokens, rows):
    assert budget.chunk_rows(device_type, 4 * 151_936, None, tokens=tokens, weight_trained=True) == rows


def test_a_head_with_lora_is_never_copied_and_its_logits_are_few():
    hidden, weight = torch.randn(256, 8, requires_grad=True), torch.randn(150_000, 8)
    low_rank = LowRank(torch.randn(256, 2, requires_grad=True), torch.randn(150_000, 2, requires_grad=True))
    targets = torch.zeros(256, dtype=torch.int64)
    with WatchMemory(MIB) as seen:
        chunked(hidden, Head(weight, low_rank=low_rank), Targets(targets), DFT()).loss_sum.backward()
    largest = max(storage.nbytes() for storage in seen.storages.values())
    assert 36 * MIB < largest <= 40 * MIB


@pytest.mark.parametrize("faster", [True, False])
def test_half_precision_is_used_where_this_cpu_is_faster_in_it(monkeypatch, faster):
    monkeypatch.setattr(gemm, "half_is_faster", lambda dtype: faster)
    weight = torch.ones(2, 2, dtype=torch.bfloat16)
    assert gemm.block_dtype(weight) == (torch.bfloat16 if faster else torch.float32)
    assert gemm.block_dtype(weight.float()) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gemm.block_dtype(weight.float()) == (torch.bfloat16 if faster else torch.float32)


def test_a_product_is_timed_in_both_dtypes(monkeypatch):
    seconds = {torch.bfloat16: 1.0, torch.float16: 3.0, torch.float32: 2.0}
    monkeypatch.setattr(gemm, "_seconds", seconds.__getitem__)
    gemm.half_is_faster.cache_clear()
    try:
        assert gemm.half_is_faster(torch.bfloat16)
        assert not gemm.half_is_faster(torch.float16)
    finally:
        gemm.half_is_faster.cache_clear()
