"""`nonfinite: error | skip` where it could not be right: refused by name, before anything starts."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from dft_axolotl.host import AxolotlHost
from dft_llamafactory.host import LlamaFactoryHost
from dft_plugin.cli import checking
from dft_plugin.cli.checking import check
from dft_plugin.config import checks
from dft_plugin.config.checks import obstacles
from dft_plugin.config.plugins import build_catalogue, build_manager
from dft_plugin.core.plan import LossPlan
from dft_swift.host import SwiftHost
from dft_trl.host import TrlHost
from dft_verl import conflicts

CATALOGUE = build_catalogue(build_manager(third_party=False))


def loss(how):
    return {"name": "dft", "nonfinite": how}


def test_another_word_is_refused_with_those_that_are_allowed():
    (said,) = CATALOGUE.problems(loss("skp"))
    assert "'warn', 'error' or 'skip'" in said
    assert "Did you mean `skip`?" in said


@pytest.mark.parametrize("host", [AxolotlHost, LlamaFactoryHost, SwiftHost, TrlHost])
def test_deepspeed_cannot_leave_a_step_out(host, monkeypatch):
    monkeypatch.setattr(host, "is_too_old", lambda self: False)
    config = {"deepspeed": "ds.json"}

    def said(how):
        return [one for one in obstacles(host(), config, loss(how), []) if "nonfinite" in one]

    assert said("warn") == said("error") == []
    (one,) = said("skip")
    assert "DeepSpeed (`deepspeed`) steps inside the backward pass" in one
    assert "write `nonfinite: error`" in one


STARTS = [
    {"deepspeed": {"zero_optimization": {"stage": 3}}},
    {"accelerate_config": "zero3"},
    {"accelerate_config": "accelerate.yaml"},
    {"config_file": "accelerate.yaml"},
    {"use_deepspeed": True},
]
TRL = {"model_name_or_path": "m", "dataset_name": "d"}


@pytest.mark.parametrize("how", ["error", "skip"])
@pytest.mark.parametrize("starts", STARTS, ids=str)
def test_check_says_it_before_the_run_does(starts, how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "accelerate.yaml").write_text("distributed_type: DEEPSPEED\n")
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump({**TRL, **starts, "loss": loss(how)}))
    said = [problem for problem in check(Path("sft.yaml"), host_name="trl").problems if "DeepSpeed" in problem]
    assert len(said) == (how == "skip")


@pytest.mark.parametrize("other", [{"accelerate_config": "fsdp2"}, {"config_file": "none.yaml"}, {"deepspeed": None}])
def test_other_engines_are_let_alone(other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump({**TRL, **other, "loss": loss("skip")}))
    assert not any("DeepSpeed" in problem for problem in check(Path("sft.yaml"), host_name="trl").problems)


def test_check_asks_what_the_run_asks():
    """One list of what a loss cannot do for both: what is added to it is in both."""
    for asks in (checking.check, checks.obstacles):
        assert "unsuited(" in inspect.getsource(asks)


@pytest.mark.parametrize("how", ["error", "skip"])
def test_verl_goes_on_to_the_optimizer_without_us(how):
    settings = CATALOGUE.settings(loss(how))
    (said,) = conflicts.unsupported(settings, CATALOGUE.every(settings))
    assert f"`loss.nonfinite: {how}`: verl's engine goes from the loss to the optimizer" in said
    assert conflicts.unsupported(CATALOGUE.settings(loss("warn")), []) == []


@pytest.mark.parametrize("how", ["error", "skip"])
def test_the_v1_trainer_of_llamafactory_has_no_place_for_it(how, monkeypatch):
    settings, host = CATALOGUE.settings(loss(how)), LlamaFactoryHost()
    monkeypatch.delenv("USE_V1", raising=False)
    assert host.unsupported(settings, []) == []
    monkeypatch.setenv("USE_V1", "1")
    (said,) = host.unsupported(settings, [])
    assert f"`loss.nonfinite: {how}` is agreed over ranks before the optimizer steps" in said


def test_the_plan_knows_it():
    plan: LossPlan = CATALOGUE.plan(CATALOGUE.settings(loss("skip")))
    assert plan.nonfinite == "skip"
    assert CATALOGUE.plan(CATALOGUE.settings("dft")).nonfinite == "warn"
