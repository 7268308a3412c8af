"""Every shipped loss, by its name in a YAML, through TRL: the first step against its formula in float64."""

from __future__ import annotations

import pytest
import torch
from support import family, tiny, training, trl_runs
from support.referred import LOSSES

from dft_plugin.objectives import FAMILY

pytestmark = pytest.mark.host

PLAIN = {
    type(objective).name: formula
    for objective, formula in reversed(family.FORMULAS)
    if objective == type(objective)() and type(objective).reference == "none" and type(objective).name != "psft"
}
REFERRED = {name: LOSSES[name] for name in ("prift", "iw_sft", "asft", "gift")}


def first_step(model, rows, formula, reads=lambda logits: {}):
    """The mean of a formula over the targets of some rows."""
    batch = training.collate(rows)
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1].double()
    kept = labels != -100
    sequence = torch.arange(len(labels))[:, None].expand_as(labels)[kept]
    return formula(logits[kept], labels[kept], sequence=sequence, **reads(logits[kept]))


def test_every_shipped_loss_is_here():
    assert {*PLAIN, *REFERRED, "psft"} == {kind.name for kind in FAMILY}


@pytest.fixture
def folder(tmp_path):
    return trl_runs.make_folder(tmp_path)


@pytest.mark.parametrize("name", PLAIN)
def test_a_loss_by_its_name(name, folder, monkeypatch):
    (log,) = trl_runs.train_here(folder, name, monkeypatch)[:1]
    losses = first_step(tiny.llama(), trl_runs.rows(folder), PLAIN[name])
    kept = (losses != 0).sum() if name == "thresholded" else torch.tensor(losses.numel())
    expected = (losses.sum() / kept.clamp(min=1)).item()
    assert log["loss"] == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert log["dft/loss"] == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", REFERRED)
def test_a_loss_that_compares_with_the_model_below_its_adapters(name, folder, monkeypatch):
    given, formula = REFERRED[name]
    (log,) = trl_runs.train_here(folder, given, monkeypatch, trl_runs.LORA)[:1]
    # What it is before its adapters have moved.
    losses = first_step(tiny.llama(), trl_runs.rows(folder), formula, lambda logits: {"ref_logits": logits})
    assert log["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)


def test_a_loss_that_reads_a_column(folder, monkeypatch):
    (log,) = trl_runs.train_here(folder, "psft", monkeypatch)[:1]
    rows = trl_runs.rows(folder)
    old = torch.cat([torch.full((sum(y != -100 for y in row["labels"][1:]),), row["old_logp"]) for row in rows])
    losses = first_step(tiny.llama(), rows, family.psft, lambda logits: {"old_logp": old})
    assert log["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
