"""Sums of products over chunks, with whatever GEMMs torch has for a device."""

from __future__ import annotations

import pytest
import torch
from support import oracle

from dft_plugin.kernels import products

C, V, N = 24, 70, 12


@pytest.fixture
def on_this_cpu(request, monkeypatch):
    """Give this CPU the GEMMs that CUDA has: a release's own, through torch's dispatcher; returns what was called."""
    called = []
    library = torch.library.Library("aten", "IMPL", "CPU")

    def mm(left, right, out_dtype, *, out):
        called.append(("mm", tuple(left.shape)))
        return out.copy_(left.double() @ right.double())

    def addmm(total, left, right, out_dtype, *, beta=1, alpha=1, out):
        called.append(("addmm", tuple(left.shape)))
        if "same dtypes" in request.param and total.dtype != left.dtype:
            raise RuntimeError("self and mat2 must have the same dtype")
        if "square" in request.param and left.shape[0] != left.shape[1]:
            raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")
        return out.copy_(total + left.double() @ right.double())

    for name, function in (("mm", mm), ("addmm", addmm)):
        if name in request.param:
            library.impl(f"{name}.dtype_out", function)
    monkeypatch.setattr(products, "_BLOCK_ROWS", 32)
    products.widening_gemms.cache_clear()
    yield called
    library._destroy()
    products.widening_gemms.cache_clear()


def chunks(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        yield (
            torch.randn(C, V, generator=generator).to(dtype),
            # Columns as far apart as those of some models.
            torch.randn(C, N, generator=generator) * torch.logspace(-3, 3, N),
        )


def summed(dtype, total_dtype=torch.float32):
    # What was there before is nobody's sum.
    total_VN = torch.full((V, N), torch.nan, dtype=total_dtype)
    for index, (grad_CV, right_CN) in enumerate(chunks(dtype)):
        products.add_product_(total_VN, grad_CV, right_CN.to(total_dtype), first=index == 0)
    return total_VN


def truth(dtype):
    """The sum in float64 of what a GEMM is given."""
    return sum(grad_CV.double().t() @ right_CN.to(dtype).double() for grad_CV, right_CN in chunks(dtype))


def test_this_cpu_has_no_gemm_that_widens():
    assert products.widening_gemms(torch.device("cpu"), torch.bfloat16, torch.float32) == frozenset()


def test_a_sum_of_the_dtype_of_the_gemm_begins_with_a_product():
    assert oracle.gap(summed(torch.float32), truth(torch.float32)) < 1e-6
    assert oracle.gap(summed(torch.float64, torch.float64), truth(torch.float64)) < 1e-13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_wider_one_rounds_each_product_only(monkeypatch, dtype):
    monkeypatch.setattr(products, "half_is_faster", lambda dtype: True)
    # Half a unit in the last place of each product, in a sum of three.
    assert oracle.gap(summed(dtype), truth(dtype)) < torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cpu_that_is_not_faster_in_half_precision_rounds_nothing_at_all(monkeypatch, dtype):
    monkeypatch.setattr(products, "half_is_faster", lambda dtype: False)
    for size in (products._WIDENED_BYTES, 1):
        # In one block, and in two.
        monkeypatch.setattr(products, "_WIDENED_BYTES", size)
        expected = sum(grad_CV.double().t() @ right_CN.double() for grad_CV, right_CN in chunks(dtype))
        assert oracle.gap(summed(dtype), expected) < 1e-6


GEMMS = {
    "mm, addmm": {"mm", "addmm"},
    "mm, addmm of the same dtypes": {"mm"},
    "mm": {"mm"},
    "mm, addmm but square": {"mm", "addmm"},
}


@pytest.mark.parametrize("on_this_cpu", GEMMS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_where_a_gemm_widens_nothing_is_rounded_between(request, on_this_cpu, dtype):
    having = request.node.callspec.params["on_this_cpu"]
    assert products.widening_gemms(torch.device("cpu"), dtype, torch.float32) == GEMMS[having]
    on_this_cpu.clear()
    # float16 rounds what it multiplies after a power of two, so what is lost is lost at its far end only.
    assert oracle.gap(summed(dtype), truth(dtype)) < 1e-6
    rows = [shape[0] for _, shape in on_this_cpu]
    if dtype == torch.bfloat16 and having == "mm, addmm":
        assert on_this_cpu == [("mm", (V, C)), ("addmm", (V, C)), ("addmm", (V, C))]
    elif dtype == torch.bfloat16:
        # The whole of the first chunk, and the others by blocks.
        assert [row for row in rows if row != V] == [32, 32, 6] * 2
    else:
        assert rows == [32, 32, 6] * 3


def test_a_gemm_that_is_refused_each_time_falls_back_without_harm(monkeypatch):
    asked = []

    def says(*what):
        asked.append(what)
        return frozenset({"mm", "addmm"})

    # What a device that cannot do it does: this CPU refuses both.
    monkeypatch.setattr(products, "widening_gemms", says)
    assert oracle.gap(summed(torch.bfloat16), truth(torch.bfloat16)) < torch.finfo(torch.bfloat16).eps / 2
    assert len(asked) == 3


def test_a_sum_of_no_rows_is_zero():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        total_VN = torch.full((V, N), torch.nan)
        products.add_product_(total_VN, torch.empty(0, V, dtype=dtype), torch.empty(0, N), first=True)
        assert not total_VN.any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [V, 8192 + 65])
def test_a_gpu_has_gemms_that_widen_and_they_round_nothing_between(rows, dtype):
    can = products.widening_gemms(torch.device("cuda", torch.cuda.current_device()), dtype, torch.float32)
    # 2.8 has the one, releases from 2.11 on both.
    assert "mm" in can
    generator = torch.Generator().manual_seed(0)
    total_VN = torch.full((rows, N), torch.nan, device="cuda")
    # Rows that start on 16 bytes, as those of logits do.
    padded = torch.randn(3, C, -(-rows // 8) * 8, generator=generator).to("cuda", dtype)[..., :rows]
    rights = torch.randn(3, C, N, generator=generator).cuda() * torch.logspace(-3, 3, N, device="cuda")
    for index, (grad_CV, right_CN) in enumerate(zip(padded, rights, strict=True)):
        products.add_product_(total_VN, grad_CV, right_CN.clone(), first=index == 0)
    expected = sum(left.double().t() @ right.to(dtype).double() for left, right in zip(padded, rights, strict=True))
    assert oracle.gap(total_VN, expected) < 1e-5
