"""The short forms of `nox -s load`: attached and detached over and over, and sizes at which something else breaks."""

from __future__ import annotations

import pytest
import torch

from dft_plugin import attach
from reliability.load import attaching, page, plots, sizes, tiny, watch

GAP = {"loss": 1e-5, "weight": 1e-5, "hidden": 1e-4}
"""Relative. The gradient of a hidden state sums a million products in float32: eager's is off by 4e-5 there."""


OF_NAMES = 24
"""KiB: Python keeps the names that were looked up in classes, up to 4,096 of them, strings of ours among them."""


@pytest.mark.parametrize(
    ("make", "times"), [(attaching.of_model, 60), (attaching.of_trainer, 40)], ids=["model", "trainer"]
)
def test_attach_and_detach_leave_nothing(make, times):
    row = make(times)
    assert row["left"] == []
    assert row.get("same_loss", True)
    assert row["growth"]["ours_kib"] < OF_NAMES, row["lines"]
    assert row["growth"]["objects"] < 20
    assert row["growth"]["files"] <= 0


def test_what_is_left_behind_is_seen():
    model, kept = tiny.model(), []
    once = lambda number: kept.append(attach(model))  # noqa: E731
    row = attaching._repeated(once, 40)
    assert row["growth"]["ours_kib"] > OF_NAMES
    assert row["growth"]["objects"] > 20
    assert "the model: forward" in watch.hooks(model)
    handle = model.lm_head.register_forward_hook(lambda *_: None)
    assert "lm_head: _forward_hooks" in watch.hooks(model)
    handle.remove()


SHORT = {
    "a vocabulary of a million, trained": (
        sizes.of_head,
        {"tokens": 4, "vocab": 1_000_000, "width": 8, "trained": True},
    ),
    "a vocabulary of a million, frozen": (
        sizes.of_head,
        {"tokens": 4, "vocab": 1_000_000, "width": 8, "trained": False},
    ),
    "a sequence of 16k in a model": (sizes.of_model, {"tokens": 1 << 14, "vocab": 256}),
    **{name: case for name, case in sizes.CASES.items() if case[1]["tokens"] <= 2},
}


@pytest.mark.parametrize(("make", "arguments"), SHORT.values(), ids=SHORT)
def test_a_size_has_the_right_numbers(make, arguments):
    found = make(**arguments)["gaps"]
    assert {name: gap for name, gap in found.items() if gap > GAP[name]} == {}


def test_a_wrong_number_is_a_gap(monkeypatch):
    right = sizes.by_hand
    monkeypatch.setattr(sizes, "by_hand", lambda *given: (right(*given)[0] * 1.001, *right(*given)[1:]))
    assert sizes.of_head(4, 16, 8, trained=True)["gaps"]["loss"] > GAP["loss"]


def test_the_page_and_its_pictures_are_made_of_the_rows():
    seen = [{"step": step, "resident_mib": 400 + step / 100, "files": 7, "objects": 9} for step in range(10, 110, 10)]
    soak = {"steps": 100, "logging_steps": 10, "traced": False, "seconds": 1.0, "log_ms": 2.0, "no_log_ms": 0.1}
    growth = {"resident_mib": 0.5, "files": 0, "objects": 0}
    rows = [
        {"part": f"soak {loss}", "loss": loss, **soak, "growth": growth, "seen": seen} for loss in ("stock", "dft")
    ]
    assert "| dft | 100 | +0.50 | +0 | +0 |  |" in page.written(rows)
    assert set(page.pictures(rows)) == {f"load-{one}.svg" for one in ("resident_mib", "objects", "files")}
    assert plots.picture(rows, "resident_mib").count("<polyline") == 2


def test_a_step_of_the_soak_is_seen():
    pytest.importorskip("accelerate")
    from reliability.load.soak import soak

    row = soak("dft", 20, every=2)
    assert set(row["growth"]) >= {"resident_mib", "files", "objects"}
    assert row["growth"]["files"] <= 0
    assert row["log_ms"] > 0
    assert torch.is_grad_enabled()
