"""The part of the first hour on a GPU that trains in TRL, in small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu import hour, sheet

pytestmark = [pytest.mark.host, pytest.mark.full]


def test_a_step_with_lora_and_with_qlora_with_each_loss(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[3])
    page = tmp_path / "page.md"
    ends = hour.take(sheet.Options("cpu", True, str(tmp_path)), ["lora", "qlora"], page, 9, lambda text: None)
    assert set(ends.values()) == {""}, page.read_text()
    for kind in ("lora", "qlora"):
        found = json.loads((tmp_path / f"{kind}.json").read_text())["numbers"]["found"]
        assert not [loss for loss in found.values() if "missing" in loss]
        assert len(found["ours"]["seconds"]) == 14
        # The first loss of the same rows and weights, by TRL and by us.
        assert found["ours"]["losses"][0] == pytest.approx(found["dft"]["losses"][0], rel=0.02)
