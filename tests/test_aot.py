"""The report on the kernel for GPUs that are not here. All variants: `nox -s aot`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="nox -s aot has it")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("what is interpreted is not compiled", allow_module_level=True)

from benchmarks import aot
from dft_plugin.kernels.triton_rows import Launch

PLAIN = aot.Variant("bf16", softcap=False, entropy=False, squares=False)


@pytest.mark.parametrize("name", aot.TARGETS)
def test_rows_of_bfloat16_move_by_16_bytes_and_nothing_spills(name):
    found = aot.compile_for(aot.TARGETS[name], PLAIN)
    assert found.load_bits == found.store_bits == 128
    assert found.spilled == 0
    assert 16 < found.registers < 128
    assert found.shared > 0


@pytest.mark.parametrize("name", ["sm_75", "sm_90", "gfx942"])
def test_rows_that_start_anywhere_are_compiled_too_and_move_by_less(name):
    found = aot.compile_for(aot.TARGETS[name], replace(PLAIN, anywhere=True))
    assert max(found.load_bits, found.store_bits) < 128
    assert found.spilled == 0


def test_each_option_is_compiled_with_each_start():
    found = list(aot.variants())
    assert len(found) == len(set(found)) == 2 * len([variant for variant in found if variant.anywhere])


@pytest.mark.parametrize("name", ["sm_75", "gfx942"])
def test_a_spill_is_seen(monkeypatch, name):
    # 128 columns a thread, with four numbers for each.
    monkeypatch.setattr(aot, "launch_for", lambda *_: Launch(1 << 16, 16))
    assert aot.compile_for(aot.TARGETS[name], replace(PLAIN, entropy=True)).spilled > 0


def test_a_spill_fails_the_report(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["aot", "sm_90"])
    spilled = {False: 1, True: aot.ANYWHERE_SPILLS + 1}
    monkeypatch.setattr(
        aot, "compile_for", lambda _, v: aot.Resources(255, spilled[v.anywhere] if v.entropy else 0, 0, 32, 32)
    )
    with pytest.raises(
        SystemExit,
        match="registers spill: sm_90 bf16 entropy, sm_90 bf16 entropy anywhere, sm_90 bf16 entropy squares, ",
    ):
        aot.main()
    assert "| sm_90 | bf16 softcap | 255 | 0 | 0 | 32 | 32 |" in capsys.readouterr().out
