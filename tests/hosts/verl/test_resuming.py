"""A verl run that is started again: a finished one, one of another loss, one whose checkpoint says nothing."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("verl")

from support.verl_runs import train, words

from dft_plugin.errors import ConflictError
from dft_plugin.runs.logs import load
from dft_plugin.runs.table import compare

pytestmark = pytest.mark.host

KEPT = {
    "data.val_files": "held-out.parquet",
    "trainer.resume_mode": "auto",
    "trainer.total_epochs": 2,
    "trainer.total_training_steps": 4,
}


def test_a_finished_run_that_is_started_again_makes_the_step_that_verl_makes(home):
    """One more, which verl saves, too: the clock stands at the end of the run."""
    ramp = {"+loss.alpha": "{from:0.0,to:1.0,until:1.0}"}
    train(*words(**{**KEPT, **ramp}))
    again = train(*words(**{**KEPT, **ramp}))
    assert [entry["dft/alpha"] for entry in again.training_logs] == [1.0]
    assert again.validation["val/dft/nll"] > 0
    assert (home / "checkpoints" / "global_step_5").is_dir()


def record(folder):
    """What was trained, as it stands in a folder."""
    return json.loads((folder / "dft_loss.json").read_text())


def test_what_was_trained_stands_beside_each_checkpoint_and_another_loss_does_not_go_on(home, capfd):
    half = {"+loss": "{name:dft,alpha:0.5,always_learn:[eos]}"}
    kept = {**KEPT, "trainer.save_freq": 2, "trainer.default_hdfs_dir": "copy", "trainer.logger": "[tensorboard]"}
    first = train(*words(**kept, **half))
    places = {
        "checkpoints/global_step_2": 2,
        "checkpoints/global_step_2/huggingface": 2,
        "checkpoints/global_step_4": 4,
        # verl's copy, for HDFS, and the folder of its log.
        "copy": 4,
        "tensorboard_log/gsm8k-sft/test": 4,
    }
    for folder, step in places.items():
        found = record(home / folder)
        assert (found["loss"]["name"], found["loss"]["alpha"], found["step"]) == ("dft", 0.5, step), folder
        assert found["max_steps"] == 4
        assert found["tokens"] == {"always_learned": "2"}
        assert found["host"]["name"] == "verl"
        assert found["computed"] == [{"from_step": 1, "path": "log p"}]
        assert found["before"] == []

    run = load(home / "tensorboard_log/gsm8k-sft/test")
    assert run.loss == "dft(alpha=0.5, floor=0.0)"
    assert [step for step, _ in run.series("dft/nll")] == [1, 2, 3, 4]
    (evaluated,) = [line for line in compare([run]) if line.key == "eval_dft/nll"]
    assert evaluated.values == (pytest.approx(first.validation["val/dft/nll"]),)

    def going_on(loss, **given):
        return train(*words(**{**kept, "trainer.total_training_steps": 5, "+loss": loss, **given}))

    with pytest.raises(ConflictError, match=r"_4 was trained with dft\(alpha=0\.5.*go on with nll.*: allow"):
        going_on("nll")
    named = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": "checkpoints/global_step_2"}
    with pytest.raises(ConflictError, match=r"global_step_2 was trained with.* `alpha` was 0\.5 and is 0\.7"):
        going_on("{name:dft,alpha:0.7,always_learn:[eos]}", **named)
    going_on(half["+loss"])
    assert record(home / "checkpoints/global_step_5")["computed"] == [{"from_step": 1, "path": "log p"}]

    capfd.readouterr()
    last = {"trainer.total_training_steps": 6}
    going_on("{name:nll,resume:allow}", **last)
    said = capfd.readouterr().err
    assert "global_step_5 was trained with dft(alpha=0.5, floor=0.0); from step 5 on `name` was dft and is nll" in said
    changed = record(home / "checkpoints/global_step_6")
    assert (changed["loss"]["name"], changed["computed"]) == ("nll", [{"from_step": 6, "path": "log p"}])
    assert [(one["until_step"], one["loss"]["name"]) for one in changed["before"]] == [(5, "dft")]

    (home / "checkpoints/global_step_2/dft_loss.json").unlink()
    going_on("nll", **named, **{"trainer.total_training_steps": 3})
    assert "the checkpoint checkpoints/global_step_2 has no record of its loss" in capfd.readouterr().err
