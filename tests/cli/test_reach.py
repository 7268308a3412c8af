"""For which command a check's verdict holds, and which keys of a file the host does not have."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from dft_axolotl.host import AxolotlHost
from dft_llamafactory.host import LlamaFactoryHost
from dft_plugin.cli import foreseeing
from dft_plugin.cli.app import app
from dft_plugin.config.hosts import Host
from dft_plugin.config.keys import unknown_keys
from dft_plugin.config.plugins import build_catalogue
from dft_swift.host import SwiftHost
from dft_trl.host import TrlHost
from dft_verl.host import VerlHost

AXOLOTL = {"base_model": "m", "datasets": []}


def of_version(monkeypatch, host, version):
    monkeypatch.setattr(host, "installed_version", lambda self: version)
    return host()


@pytest.mark.parametrize("version", ["0.19.0", "0.20.1"])
def test_the_command_that_drops_the_line_is_named_and_what_mends_it(monkeypatch, version):
    host = of_version(monkeypatch, AxolotlHost, version)
    assert foreseeing.reach(host, AXOLOTL, autoloads=False) == (
        "on with `dft train`; `axolotl train` alone drops the line and trains plain SFT. For that one list `plugins: "
        "[dft_axolotl.DFTPlugin]`, or run `dft autoload enable` once"
    )
    assert foreseeing.reach(host, AXOLOTL, autoloads=True) == "on with `dft train` and, by autoload, `axolotl train`"
    listed = {**AXOLOTL, "plugins": ["dft_axolotl.DFTPlugin"]}
    assert foreseeing.reach(host, listed, autoloads=False) == "on with `dft train` and `axolotl train`"


def test_an_axolotl_that_finds_the_plugin_honours_the_line_alone(monkeypatch):
    host = of_version(monkeypatch, AxolotlHost, "0.21.0")
    assert foreseeing.reach(host, AXOLOTL, autoloads=False) == "on with `dft train` and `axolotl train`"


@pytest.mark.parametrize(
    ("host", "says"),
    [
        (TrlHost(), "on with `dft train`; `trl sft` alone refuses the line"),
        (
            SwiftHost(),
            "on with `dft train`; `swift sft` alone refuses the line. For that one run `dft autoload enable` once",
        ),
        (
            LlamaFactoryHost(),
            "on with `dft train`; `llamafactory-cli train` alone refuses the line (with ALLOW_EXTRA_ARGS=1 it drops "
            "it). For that one run `dft autoload enable` once",
        ),
        (VerlHost(), "on with `dft train` and `python -m verl.trainer.sft_trainer`"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_host_says_for_which_command_it_holds(host, says):
    assert foreseeing.reach(host, {}, autoloads=False) == says


def test_a_host_that_names_no_command_says_nothing():
    assert foreseeing.reach(Host(), {}, autoloads=True) is None


@pytest.fixture(autouse=True)
def text_of_a_host(tmp_path, monkeypatch):
    """A package whose import fails, so that it is only read."""
    folder = tmp_path / "site" / "a_keyed_host"
    (folder / "args").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    (folder / "args" / "data.py").write_text(
        "class Args:\n    cutoff_len: int = 1\n    parser.add_argument('--num_machines')\n"
        "    base_model: str\n    datasets: list\n    adapter : str\n"
    )
    monkeypatch.syspath_prepend(folder.parent)


class Keyed(Host):
    """Of a distribution that is installed wherever we are."""

    name: ClassVar[str] = "keyed"
    distribution: ClassVar[str] = "pluggy"
    keys_in: ClassVar[tuple[str, ...]] = ("a_keyed_host/args",)

    def known_keys(self):
        return frozenset({"learning_rate"})


class NoKeys(Keyed):
    keys_in: ClassVar[tuple[str, ...]] = ()


def test_a_key_of_the_file_that_the_host_has_not_is_named():
    assert unknown_keys(Keyed(), {"lerning_rate": 1, "learning_rate": 1, "cutoff_len": True}) == [
        "`lerning_rate`: keyed has no such key. Did you mean `learning_rate`?"
    ]


def test_keys_that_are_defined_where_the_host_says_import_nothing(monkeypatch):
    def imported(self):
        raise AssertionError("the host was imported")

    monkeypatch.setattr(Keyed, "known_keys", imported)
    assert unknown_keys(Keyed(), {"cutoff_len": 1, "num_machines": 2}) == []


def test_of_many_the_first_are_named():
    every = unknown_keys(Keyed(), {f"key_{number}": 1 for number in range(5000)})
    assert len(every) == 21
    assert every[-1].startswith("4,980 more keys that keyed has not")


def test_keys_are_left_alone_where_nobody_knows_them_all(monkeypatch):
    assert unknown_keys(of_version(monkeypatch, Keyed, None), {"lerning_rate": 1}) == []
    assert unknown_keys(NoKeys(), {"lerning_rate": 1}) == []
    monkeypatch.setattr(Keyed, "installed_version", lambda self: "1")
    monkeypatch.setattr(Keyed, "takes_any_key", lambda self, config: True)
    assert unknown_keys(Keyed(), {"lerning_rate": 1}) == []


def test_a_host_that_cannot_be_imported_is_not_asked(monkeypatch):
    monkeypatch.setattr(Keyed, "known_keys", lambda self: __import__("a_keyed_host"))
    assert unknown_keys(Keyed(), {"lerning_rate": 1}) == []


def test_plugins_of_others_bring_keys_to_axolotl():
    host = AxolotlHost()
    own = ["axolotl.integrations.liger.LigerPlugin", "dft_axolotl:DFTPlugin"]
    assert not host.takes_any_key({**AXOLOTL, "plugins": own})
    assert host.takes_any_key({**AXOLOTL, "plugins": [*own, "mine.Plugin"]})


def test_the_check_says_both(tmp_path, monkeypatch):
    for host, version in ((AxolotlHost, "0.19.0"), (VerlHost, "0.9.1")):
        monkeypatch.setattr(host, "installed_version", lambda self, version=version: version)
    monkeypatch.setattr(AxolotlHost, "known_keys", lambda self: frozenset({"learning_rate"}))
    monkeypatch.setattr(AxolotlHost, "keys_in", ("a_keyed_host/args",))
    monkeypatch.setattr(foreseeing, "autoloads", lambda catalogue: False)
    path = tmp_path / "sft.yml"
    path.write_text("base_model: m\ndatasets: []\nlerning_rate: 1\nadapter: lora\nloss: dft\n")
    printed = CliRunner().invoke(app, ["check", str(path)])
    assert printed.exit_code == 0
    lines = printed.output.splitlines()
    assert "hint      `lerning_rate`: axolotl has no such key. Did you mean `learning_rate`?" in lines
    assert lines[-2].startswith("hint      on with `dft train`; `axolotl train` alone drops the line")
    assert lines[-1] == "result    the loss will be on"
    found = json.loads(CliRunner().invoke(app, ["check", str(path), "--json"]).output)
    assert found["commands"].startswith("on with `dft train`; `axolotl train` alone")


def test_the_kernel_is_for_who_asks_and_for_hosts_that_run_one(tmp_path, monkeypatch):
    monkeypatch.setattr(AxolotlHost, "installed_version", lambda self: "0.21.0")
    monkeypatch.setattr(VerlHost, "installed_version", lambda self: "0.9.1")
    own, verls = tmp_path / "a.yml", tmp_path / "v.yaml"
    own.write_text("base_model: m\ndatasets: []\nloss: dft\n")
    verls.write_text("defaults: [sft_trainer_engine, _self_]\nloss: dft\n")
    assert "\nkernel " not in CliRunner().invoke(app, ["check", str(own)]).output
    assert json.loads(CliRunner().invoke(app, ["check", str(own), "--json"]).output)["kernel"].startswith("auto: ")
    assert json.loads(CliRunner().invoke(app, ["check", str(verls), "--json"]).output)["kernel"] is None


@pytest.mark.parametrize("name", ["trl", "axolotl", "llamafactory"])
def test_hosts_that_know_their_keys_say_where_they_are_defined(name):
    host = build_catalogue().hosts[name].item
    assert host.keys_in
    assert host.own_command is not None
