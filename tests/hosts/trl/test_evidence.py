"""The study's part on a real model, by `dft train` in TRL, with a tiny model in its place."""

from __future__ import annotations

import json

import pytest
from support import asked
from typer.testing import CliRunner

from evidence import __main__ as command
from evidence.model import Size
from evidence.offline import asking, by_trl
from evidence.offline.asking import Budget
from evidence.offline.methods import METHODS, Training
from evidence.prior import Prior
from evidence.real import grid
from evidence.real.questions import Shown
from evidence.real.training import SHORT
from evidence.rows import Rows
from evidence.smoke import SMOKE_OFFLINE
from evidence.tasks import Example

pytestmark = pytest.mark.host


@pytest.mark.parametrize(
    ("tuning", "loss"), [("LoRA", "alpha 0.5"), pytest.param("full", "DFT", marks=pytest.mark.full)]
)
def test_a_model_is_trained_and_asked_and_nothing_of_it_is_left(tmp_path, tuning, loss):
    asked.assert_trained_and_asked(tmp_path, tuning, loss)


def test_the_probe_looks_at_what_is_trained_on(tmp_path):
    run = grid.RealRun(Shown("facts", 0.0), "LoRA", "DFT", seed=1, length=SHORT, model=asked.model)
    row = json.loads(json.dumps(grid.RealProbe(run).execute(None, tmp_path, lambda: None)))
    assert row["cell"] == run.cell
    assert row["found"]["rows"] == SHORT.steps * SHORT.rows
    assert 0 <= row["found"]["own_answers"] < row["found"]["mean_prob"] < 1
    assert [path.name for path in tmp_path.iterdir()] == ["real"]


@pytest.mark.full
def test_a_training_that_fails_says_what_the_command_said(tmp_path):
    run = grid.RealRun(Shown("facts", 0.0), "LoRA", "DFT", seed=1, length=SHORT, model=lambda folder: None)
    with pytest.raises(RuntimeError, match=r"`dft train .*sft.yaml` ended with"):
        run.execute(None, tmp_path, lambda: None)


def test_the_offline_part_runs_once_by_every_trainer_and_stands_on_the_page(tmp_path):
    run = ["run", "--part", "offline", "--smoke", "--out", str(tmp_path), "--rows", str(tmp_path / "rows")]
    done = CliRunner().invoke(command.app, run)
    assert "0 failed, 0 of those that can be made now are left" in done.output
    rows = [row for row in Rows(tmp_path / "rows").all().values() if row["seed"]]
    assert {row["loss"] for row in rows} == {"base", *METHODS}
    for row in rows:
        if row["loss"] != "base":
            assert row["spent"]["sampled"] == SMOKE_OFFLINE.budget.questions * SMOKE_OFFLINE.budget.tries
    assert not list((tmp_path / "smoke" / "bases").glob("offline-*"))
    page = tmp_path / "evidence.md"
    wrote = CliRunner().invoke(command.app, ["page", "--smoke", "--rows", str(tmp_path / "rows"), "--into", str(page)])
    assert wrote.exit_code == 0, wrote.output
    assert "| GRPO | 0.0003 | 1 |" in page.read_text()


@pytest.mark.parametrize("method", ["dpo", "grpo", "rloo"])
def test_what_is_rewarded_becomes_likelier(tmp_path, method, monkeypatch):
    def right(answer):
        return "3" if answer[:1] in tuple("0123456789") else ""

    # Sums that a tiny model cannot do would reward nothing.
    monkeypatch.setattr(asking, "said", right)
    monkeypatch.setattr(by_trl, "said", right)
    monkeypatch.setattr(asking, "questions", lambda count, seed: [Example("1+2=", "", "3")] * count)
    model = Prior(steps=30, size=Size(hidden=24, layers=1)).model(1, tmp_path, lambda: None)
    budget = Budget(questions=64, tries=8, rows=32)

    def count():
        asked = asking.ask(model, asking.questions(64, 0), 4, 3, lambda: None)
        return sum(len(one.right) for one in asked)

    before = count()
    spent = getattr(by_trl, method)(Training(model, 1e-2, 1, budget, tmp_path / "own", lambda: None))
    assert spent.sampled == spent.trained == 512
    assert spent.sampled_tokens > 512
    assert count() > 1.3 * before
