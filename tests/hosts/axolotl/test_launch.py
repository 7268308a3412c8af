"""`dft train`: what becomes of overrides, and what is started."""

from __future__ import annotations

import json
import subprocess

import pytest

pytest.importorskip("axolotl")

from support.axolotl_runs import write_config

from dft_axolotl import launch
from dft_plugin.config.hosts import Launch
from dft_plugin.config.settings import Settings
from dft_plugin.errors import ConflictError, SettingsError

pytestmark = [pytest.mark.host, pytest.mark.newest]

SETTINGS = Settings(name="dft", options={"alpha": 0.7})
LOSS = {"name": "dft", "alpha": 0.7}


def started(home, monkeypatch, *overrides, **outcome):
    """The command that `dft train` would start."""
    commands = []

    def run(command, check):
        commands.append(command)
        if outcome:
            raise subprocess.CalledProcessError(outcome["code"], command)

    monkeypatch.setattr(launch.subprocess, "run", run)
    code = launch.start(Launch(str(write_config(home)), overrides, SETTINGS))
    return code, [command[command.index("-m") + 1 :] for command in commands]


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("micro_batch_size", "2", ["--micro-batch-size=2"]),
        ("sample_packing", "true", ["--sample-packing"]),
        ("sample_packing", "false", ["--no-sample-packing"]),
        ("launcher", "torchrun", ["--launcher=torchrun"]),
        ("nproc_per_node", "2", ["--nproc_per_node=2"]),
    ],
)
def test_an_override_is_an_option_of_axolotl_or_the_launchers(key, text, words):
    assert launch._option(key, text) == words


@pytest.mark.parametrize(
    ("launcher", "module"), [("accelerate", "accelerate.commands.launch"), ("torchrun", "torch.distributed.run")]
)
def test_the_launcher_starts_our_module_with_the_loss_in_its_arguments(launcher, module, home, monkeypatch):
    overrides = [("launcher", launcher), ("nproc_per_node", "2"), ("micro_batch_size", "2")]
    code, (words,) = started(home, monkeypatch, *overrides)
    assert code == 0
    assert words[:4] == [module, "--nproc_per_node=2", "-m", "dft_axolotl.run"]
    assert words[4] == "--dft-settings"
    assert json.loads(words[5]) == LOSS
    assert words[6] == str(home / "config.yml")
    assert "--micro-batch-size=2" in words[7:]


def test_a_rendezvous_is_completed_as_axolotl_does(home, monkeypatch):
    overrides = [("launcher", "torchrun"), ("rdzv_endpoint", "host:1")]
    _, (words,) = started(home, monkeypatch, *overrides)
    assert words[words.index("--rdzv_backend") + 1] == "c10d"


def test_every_config_of_a_sweep_is_started(home, monkeypatch):
    (home / "sweep.yml").write_text("learning_rate: [0.1, 0.2]\n")
    _, commands = started(home, monkeypatch, ("sweep", "sweep.yml"))
    assert len(commands) == 2
    assert all(json.loads(words[words.index("--dft-settings") + 1]) == LOSS for words in commands)


def test_the_exit_code_of_the_ranks_is_ours(home, monkeypatch):
    assert started(home, monkeypatch, code=3)[0] == 3


def test_what_axolotls_command_line_refuses_is_one_clear_error(home, monkeypatch):
    with pytest.raises(SettingsError, match=r"axolotl train: .*'mpirun' is not one of"):
        started(home, monkeypatch, ("launcher", "mpirun"))


def test_a_cloud_is_refused(home, monkeypatch):
    (home / "cloud.yml").write_text("provider: modal\n")
    with pytest.raises(ConflictError, match=r"`cloud`: the run starts on machines that have no dft-plugin"):
        started(home, monkeypatch, ("cloud", "cloud.yml"))
