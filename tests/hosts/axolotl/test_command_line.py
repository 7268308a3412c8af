"""A loss on Axolotl's own command line, which takes some of it and drops some: nothing is dropped in silence."""

from __future__ import annotations

import pytest

pytest.importorskip("axolotl")

from support.axolotl_runs import PLUGIN, command, since, write_config

from dft_axolotl.reading import require_read
from dft_plugin.errors import SettingsError

pytestmark = pytest.mark.host

PROGRAM = "/somewhere/axolotl/cli/train.py"
DROPPED = {
    "another loss": (["--loss=nll"], "dft"),
    "a loss": (["--loss", "dft"], None),
    "a mapping": (["--loss={name: dft, alpha: 0.5}"], {"name": "dft"}),
    "an option": (["--loss__alpha=0.5"], "dft"),
    "another value of an option": (["--loss__alpha=0.5"], {"name": "dft", "alpha": 0.9}),
    "an option with a dot": (["--loss.alpha", "0.5"], "dft"),
}
TAKEN = {
    "a loss": (["--loss=nll"], "nll"),
    "a loss with options": (["--loss=dft"], {"name": "dft", "alpha": 0.5}),
    "an option": (["--loss__alpha=0.5"], {"name": "dft", "alpha": 0.5}),
    "a key of Axolotl's": (["--loss-watchdog-threshold=5", "--learning-rate=1"], None),
}


def test_what_its_launcher_drops_stops_the_run(home):
    write_config(home, loss="nll", max_steps=1)
    done = command(home, "axolotl", "train", "config.yml", "--launcher", "python", "--loss", "dft")
    assert done.returncode != 0
    assert "`--loss dft` was not read: Axolotl hands options that it does not know to the launcher" in done.stderr
    assert "or start with `dft train CONFIG loss=dft`." in done.stderr
    assert not (home / "out").exists()


@since("0.21")
def test_what_a_strict_config_drops_stops_the_run(home, monkeypatch):
    from axolotl.cli.config import load_cfg

    path = write_config(home, drop=["loss", "plugins"], strict=True)
    monkeypatch.setattr("sys.argv", [PROGRAM, str(path), "--loss=dft"])
    with pytest.raises(SettingsError, match=r"`--loss=dft` was not read"):
        load_cfg(str(path), loss="dft")


@pytest.mark.parametrize("case", DROPPED)
def test_words_that_are_not_in_the_config_are_named(case):
    words, loss = DROPPED[case]
    with pytest.raises(SettingsError, match="was not read"):
        require_read({"loss": loss, "plugins": [PLUGIN]}, [PROGRAM, "config.yml", *words])


@pytest.mark.parametrize("case", TAKEN)
def test_words_that_are_in_the_config_are_let_through(case):
    words, loss = TAKEN[case]
    require_read({"loss": loss}, [PROGRAM, "config.yml", *words])


def test_the_words_of_another_program_are_its_own_affair():
    require_read({"loss": "dft"}, ["/somewhere/train.py", "--loss=huber"])
