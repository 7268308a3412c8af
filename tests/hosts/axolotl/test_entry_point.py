"""From 0.21 on Axolotl finds the plugin by itself, in every run: `loss:` is all that a config needs."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("axolotl")

from axolotl.cli.config import load_cfg, prepare_plugins
from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault
from support.axolotl_runs import PLUGIN, SAVED, assert_same, command, history, since, train, write_config

pytestmark = [pytest.mark.host, pytest.mark.newest, since("0.21")]


def ours():
    return [name for name in PluginManager.get_instance().plugins if "dft" in name]


def test_one_line_is_enough_for_the_unmodified_command(home, expected):
    write_config(home, **SAVED, drop=["plugins"])
    assert_same(home, command(home, "axolotl", "train", "config.yml", "--launcher", "python"), expected)


@pytest.mark.parametrize("name", ["dft_axolotl.DFTPlugin", "dft_axolotl:DFTPlugin"])
def test_it_may_be_listed_as_well_under_either_name(name, home, capsys):
    run = train(write_config(home, plugins=[name], max_steps=1))
    assert ours() == [PLUGIN]
    assert run.logs[0]["loss"] == pytest.approx(run.expected[0], rel=1e-6)
    assert capsys.readouterr().err.count("dft: loss") == 1


def test_without_loss_it_is_silent_and_light(home):
    """What Axolotl itself has loaded cannot be told from what we would; nothing of the core is loaded at all."""
    write_config(home, **SAVED, plugins=["loaded_modules.LoadedModules"], drop=["loss"])
    done = command(home, "axolotl", "train", "config.yml", "--launcher", "python")
    assert done.returncode == 0, done.stderr
    loaded = (home / "loaded.txt").read_text().split()
    assert loaded == ["dft_axolotl", "dft_axolotl.args", "dft_axolotl.plugin"]
    assert "dft:" not in done.stderr
    assert not any("dft" in key for entry in history(home, "out/config.yml", 2) for key in entry)


def test_a_loss_is_refused_or_taken_and_no_loss_leaves_the_config_alone(home):
    assert load_cfg(str(write_config(home, drop=["plugins"]))).loss == "dft"
    with pytest.raises(ValueError, match=r"`loss`: `dff` is not a known name\. Did you mean `dft`\?"):
        load_cfg(str(write_config(home, drop=["plugins"], loss="dff")))
    assert load_cfg(str(write_config(home, drop=["plugins", "loss"]))).loss is None


BROKEN = {
    "the plugin": "dft_axolotl.plugin",
    "what it calls": "dft_axolotl.calls",
    "the core": "dft_plugin.hf.trainer",
}


@pytest.mark.parametrize("part", BROKEN)
def test_a_broken_installation_stops_a_run_with_a_loss_and_no_other(part, home, monkeypatch):
    """Axolotl skips a plugin of an installed package that cannot be loaded, with a warning."""
    for name in [name for name in sys.modules if name.startswith(("dft_axolotl.", "dft_plugin"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, BROKEN[part], None)
    prepare_plugins(DictDefault({}))
    assert ours() == [PLUGIN]
    with pytest.raises(RuntimeError, match=r"DFTPlugin cannot be loaded \(.*so `loss:` would not take effect"):
        prepare_plugins(DictDefault({"loss": "dft"}))


def test_so_does_the_command(home):
    write_config(home, drop=["plugins"])
    broken = home / "broken" / "dft_plugin"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("import a_module_that_is_gone")
    command_line = ("axolotl", "train", "config.yml", "--launcher", "python")
    done = command(home, *command_line, PYTHONPATH=str(broken.parent))
    assert done.returncode != 0
    assert "dft_axolotl.DFTPlugin cannot be loaded (No module named 'a_module_that_is_gone')" in done.stderr
