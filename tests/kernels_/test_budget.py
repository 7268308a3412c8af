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
        ("cuda", 300 * MIB, False, 512),
        ("cuda", 300 * MIB, True, 512),
        ("cuda", 1, True, 256),
        ("cuda", 1 << 40, True, 4096),
        ("cuda", None, False, 512),
        ("cuda", None, True, 3456),
    ],
)
def test_a_chunk_fits_its_budget(device_type, scratch, trained, rows):
    # Qwen2.5's 151,936 tokens in float32; 517 rows of them are 300 MiB, of which 512 are whole tiles; 2 GiB are 3,533.
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
    scratch = 300 * MIB if device_type == "cuda" else None
    assert budget.chunk_rows(device_type, 4 * 151_936, scratch, tokens=tokens, weight_trained=True) == rows


def on_an_h100(vocab=151_936, width=4096, trained=False, **known):
    return budget.chunk_rows(
        "cuda",
        2 * vocab,
        None,
        tokens=1 << 20,
        weight_trained=trained,
        width=width,
        **{"processors": 132, "free_bytes": 40 << 30, **known},
    )


@pytest.mark.parametrize("vocab", [32_000, 128_256, 151_936, 262_144])
@pytest.mark.parametrize("width", [896, 4096, 8192])
def test_the_gradient_of_a_trained_weight_costs_a_tenth_of_its_gemms(vocab, width):
    rows = on_an_h100(vocab, width, trained=True)
    traffic, work = 8 * vocab * width / 3.35e12, 6 * rows * vocab * width / 989e12
    assert traffic / work <= 0.1
    assert rows * 2 * vocab <= 2048 * MIB


@pytest.mark.parametrize(("width", "rows"), [(896, 1664), (4096, 1152), (8192, 640)])
def test_a_frozen_head_fills_the_device_once_and_no_more(width, rows):
    assert on_an_h100(width=width) == rows
    assert rows * 2 * 151_936 <= 512 * MIB
    # Half as many multiprocessors want half as many tiles, but never fewer rows than arithmetic wants.
    assert on_an_h100(width=width, processors=66) == max(640, {896: 1664, 4096: 640, 8192: 640}[width])


def test_what_is_free_bounds_a_chunk_by_halves_so_that_a_little_more_or_less_changes_nothing():
    gib = 1 << 30
    whole = on_an_h100(trained=True, free_bytes=None)
    assert whole == 4096
    found = [on_an_h100(trained=True, free_bytes=int(free * gib)) for free in (5, 4.5, 4, 3, 2.5, 2, 0.1, 0)]
    assert found == [4096, 2048, 2048, 2048, 2048, 1024, 256, 256]


def test_memory_is_asked_for_only_where_nobody_has_said_and_where_there_is_an_accelerator(monkeypatch):
    asked = []
    monkeypatch.setattr("dft_plugin.kernels.linear_chunked.free_bytes", lambda device: asked.append(device))
    hidden, head = torch.randn(4, 8), Head(torch.randn(16, 8))
    chunked(hidden, head, Targets(torch.zeros(4, dtype=torch.int64)), DFT(), scratch_bytes=1 << 20)
    assert asked == []
    chunked(hidden, head, Targets(torch.zeros(4, dtype=torch.int64)), DFT())
    assert asked == [torch.device("cpu")]
    monkeypatch.undo()
    assert budget.free_bytes(torch.device("cpu")) is None
    assert budget.free_bytes(torch.device("cuda")) is None or torch.cuda.is_available()
    assert budget.processors(torch.device("cuda", 0)) == 128 or torch.cuda.is_available()


def test_what_torch_does_not_know_of_a_device_is_not_known(monkeypatch):
    def foreign(device):
        # What a CUDA build says of an XLA or an XPU device.
        raise ValueError(f"{device} doesn't match the current accelerator cuda.")

    monkeypatch.setattr(torch.accelerator, "get_memory_info", foreign, raising=False)
    assert budget.free_bytes(torch.device("xla")) is None


@pytest.mark.gpu
def test_free_memory_counts_what_torch_holds_without_using_it():
    device = torch.device("cuda")
    before = budget.free_bytes(device)
    held = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    assert before - budget.free_bytes(device) == pytest.approx(1 << 30, rel=0.05)
    del held
    # Not given back to the driver, and free all the same.
    assert budget.free_bytes(device) == pytest.approx(before, rel=0.01)
    assert budget.processors(device) > 1


@pytest.mark.gpu
@pytest.mark.parametrize("trained", [False, True])
def test_chunks_of_any_size_give_the_same_but_for_rounding(trained):
    torch.manual_seed(0)
    vocab, width, tokens = 50_257, 256, 4096
    weight = torch.randn(vocab, width, device="cuda", dtype=torch.bfloat16).div_(16).requires_grad_(trained)
    hidden = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(vocab, (tokens,), device="cuda")
    found = []
    for scratch in (None, 50 * MIB, 1 << 30):
        hidden.grad = weight.grad = None
        loss = chunked(hidden, Head(weight), Targets(targets), DFT(), scratch_bytes=scratch).loss_sum
        loss.backward()
        found.append([loss.detach(), hidden.grad] + ([weight.grad] if trained else []))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert float((one.double() - two.double()).norm() / one.double().norm()) < 0.02


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


def test_a_head_without_width_has_chunks():
    given = {"tokens": 1000, "weight_trained": False}
    assert budget.chunk_rows("cuda", 2 * 33, None, width=0, **given) == budget.chunk_rows(
        "cuda", 2 * 33, None, width=1, **given
    )
