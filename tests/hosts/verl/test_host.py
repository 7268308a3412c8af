"""Which YAML is verl's, and what is said of it; needs no verl."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dft_plugin.cli.checking import check
from dft_plugin.config.hosts import Launch
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.config.settings import Settings
from dft_plugin.errors import ConflictError
from dft_plugin.testing import check_host
from dft_verl import conflicts
from dft_verl.host import VerlHost
from dft_verl.launch import in_hydra, words

CONFIG = {"defaults": ["sft_trainer_engine", "_self_"], "model": {"path": "m"}, "data": {"train_files": "d.parquet"}}
ROOT = Path(__file__).parents[3]


def test_the_host_conforms():
    check_host(VerlHost(), CONFIG, foreign={"model_name_or_path": "m", "dataset_name": "d"})


@pytest.mark.parametrize(
    "config", [{"defaults": ["sft_trainer_engine"]}, {"model": {"path": "m"}, "trainer": {"x": 1}}]
)
def test_a_config_that_builds_on_verls_or_has_its_groups_is_its_own(config):
    assert VerlHost().recognise(config)


def test_no_example_of_another_host_is_verls():
    import yaml

    others = [path for path in (ROOT / "example_configs").glob("*/*.y*ml") if path.parent.name != "verl"]
    assert len(others) > 10
    assert not [path.name for path in others if VerlHost().recognise(yaml.safe_load(path.read_text()))]


def test_a_config_that_builds_on_nothing_is_not_whole():
    (found,) = VerlHost().conflicts({"model": {"path": "m"}, "data": {"train_files": "d"}})
    assert str(found) == (
        "`defaults`: without verl's own config below it this one is not whole. Begin it with `defaults: "
        "[sft_trainer_engine, _self_]`."
    )


def test_reinforcement_learning_is_refused_and_so_is_a_switch_that_leaves_us_out(monkeypatch):
    (found,) = VerlHost().conflicts({**CONFIG, "actor_rollout_ref": {"model": {}}})
    assert found.key == "actor_rollout_ref"
    for policy, wrong in (("auto", False), ("dft,other", False), ("none", True), ("other", True)):
        assert bool(conflicts.find(CONFIG, {conflicts.PLUGINS: policy})) is wrong, policy


@pytest.mark.parametrize(("name", "reaches"), [("dft", True), ("nll", True), ("idft", True), ("eaft", False)])
def test_dft_check_says_what_verl_cannot_do(name, reaches, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"defaults: [sft_trainer_engine, _self_]\nloss: {name}\nmodel: {{path: m}}\n")
    report = check(path)
    assert report.host.name == "verl"
    assert bool([problem for problem in report.problems if "verl hands over log p" in problem]) is not reaches


def test_every_objective_is_trained_or_refused_with_a_reason():
    catalogue = build_catalogue()
    trained = {
        name
        for name in catalogue.objectives
        if not conflicts.unsupported(Settings(name=name), catalogue.every(catalogue.settings(name)))
    }
    assert trained == {"dft", "nll", "idft", "deft", "profit", "chord_phi", "focal"}


def test_dft_train_starts_verls_own_trainer(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    settings = Settings(name="dft", options={"alpha": 0.7})
    launch = Launch("run.yaml", [("optim.lr", "1e-5")], settings)
    made = words(Path("/some/run.yaml"), True, {"trainer": {"n_gpus_per_node": 4}}, launch)
    assert made[1:] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", "-m", "verl.trainer.sft_trainer"),
        *("--config-path", "/some", "--config-name", "run", "hydra.searchpath=[pkg://verl.trainer.config]"),
        *("optim.lr=1e-5", "~loss", '+loss={name:"dft",alpha:0.7}'),
    ]
    inside = words(Path("/some/run.yaml"), False, {"hydra": {"searchpath": ["x"]}}, launch)
    assert "~loss" not in inside
    assert not [word for word in inside if word.startswith("hydra.searchpath")]
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert words(Path("/some/run.yaml"), False, {}, launch)[1:3] == ["-m", "verl.trainer.sft_trainer"]


def test_dft_train_leaves_several_machines_to_torchrun():
    launch = Launch("run.yaml", [], Settings(name="dft"))
    with pytest.raises(ConflictError, match=r"starts the ranks of one machine\. Start torchrun on each"):
        words(Path("run.yaml"), True, {"trainer": {"nnodes": 2}}, launch)


def test_a_loss_is_written_in_hydras_grammar():
    value = {"name": "dft", "alpha": {"from": 0.0, "to": 1.0}, "always_learn": ["eos", 7], "weights": None}
    assert in_hydra(value) == '{name:"dft",alpha:{from:0.0,to:1.0},always_learn:["eos",7],weights:null}'


PROGRAM = """
import sys, types
hydra = types.ModuleType("hydra")
hydra.main = lambda *args, **named: lambda program: program
sys.modules["hydra"] = hydra
before = set(sys.modules)
import dft_verl.autoload
print(sorted(name for name in set(sys.modules) - before if name.partition(".")[0] not in sys.stdlib_module_names))
"""


def test_what_verl_loads_of_us_needs_the_standard_library_alone(tmp_path):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(PROGRAM)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['dft_verl', 'dft_verl.autoload']"
