"""What a config says by reference is looked up before a run as verl looks it up in the run; starts none."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("omegaconf")

from dft_plugin.cli.checking import check
from dft_plugin.config.hosts import Launch
from dft_plugin.config.settings import Settings
from dft_plugin.errors import ConflictError, SettingsError
from dft_verl import launch

pytestmark = pytest.mark.host

CONFIG = "defaults: [sft_trainer_engine, _self_]\n"


@pytest.fixture
def checked(tmp_path):
    """Checks a config that goes on with some lines."""

    def checked(lines, *overrides):
        path = tmp_path / "run.yaml"
        path.write_text(CONFIG + lines)
        return check(path, overrides)

    return checked


def test_a_loss_is_taken_from_the_environment_and_from_other_keys(checked, monkeypatch):
    monkeypatch.setenv("LOSS", "dft")
    report = checked("loss: {name: '${oc.env:LOSS}', alpha: '${strength}'}\nstrength: 0.7\n")
    assert (report.settings.name, report.settings.options) == ("dft", {"alpha": 0.7})
    assert report.problems == []
    assert report.hints == []
    assert checked("strength: dft\n", "loss=${strength}").settings.name == "dft"


def test_what_is_in_the_way_is_seen_through_a_reference(checked):
    report = checked("loss: dft\nheads: true\nmodel: {mtp: {enable: '${heads}'}}\n")
    assert [one.key for one in report.conflicts] == ["model.mtp.enable"]
    assert report.ok is False


def test_what_only_the_run_can_look_up_is_a_hint_where_it_may_be_in_the_way(checked):
    lines = "loss: dft\ndata: {pad_mode: '${mine.mode}'}\ntrainer: {project_name: '${now:%Y}'}\n"
    report = checked(lines)
    assert report.conflicts == []
    (hint,) = report.hints
    assert hint == (
        "`data.pad_mode: ${mine.mode}` is looked up in the run, which stops before anything is built if it is in the "
        "way."
    )


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ("${oc.env:NO_SUCH}", "Environment variable 'NO_SUCH' not found"),
        ("{name: dft, alpha: '${optim.share}'}", "Interpolation key 'optim.share' not found"),
    ],
)
def test_a_loss_that_cannot_be_looked_up_is_refused_with_the_reason(loss, says, checked):
    with pytest.raises(SettingsError) as raised:
        checked(f"loss: {loss}\n")
    assert says in str(raised.value)
    assert "torchrun ... -m verl.trainer.sft_trainer" in str(raised.value)


def test_without_omegaconf_a_loss_by_reference_is_refused_and_all_else_is_read(checked, monkeypatch):
    monkeypatch.setitem(sys.modules, "omegaconf", None)
    with pytest.raises(SettingsError, match=r"omegaconf is not installed"):
        checked("loss: ${strength}\nstrength: dft\n")
    assert checked("loss: dft\nstrength: ${x}\n").settings.name == "dft"


def test_dft_train_starts_as_many_ranks_as_a_reference_says(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("CARDS", "4")
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG + "loss: dft\ntrainer: {n_gpus_per_node: '${oc.env:CARDS}'}\n")
    started = []

    def run(words, check):
        started.append(words)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(launch.subprocess, "run", run)
    launch.start(Launch(str(path), [], Settings(name="dft")))
    assert "--nproc-per-node=4" in started[0]
    monkeypatch.delenv("CARDS")
    with pytest.raises(ConflictError, match=r"trainer.n_gpus_per_node: \$\{oc.env:CARDS\}`: a number is needed"):
        launch.start(Launch(str(path), [], Settings(name="dft")))
