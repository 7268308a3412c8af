"""What the command says of itself: version, help, completion, and `python -m dft_plugin`. Nothing starts a host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import ClassVar

import pytest
from typer.testing import CliRunner

import dft_plugin
from dft_plugin.cli import completing
from dft_plugin.cli.app import app
from dft_plugin.config.hosts import Host
from dft_plugin.config.keys import unknown_overrides
from dft_plugin.config.plugins import build_catalogue, build_manager


def python(*words, **environment):
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        check=False,
    )


@pytest.mark.parametrize("module", ["dft_plugin", "dft_plugin.cli"])
def test_the_package_is_the_command(module):
    done = python("-m", module, "--version")
    assert (done.returncode, done.stdout) == (0, f"dft-plugin {dft_plugin.__version__}\n"), done.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_no_terminal_shows_is_printed_escaped(encoding, tmp_path):
    config = tmp_path / os.fsdecode(b"\xff.yml")
    config.write_text('loss: dft\n"\\ud800": 1\n')
    done = python("-m", "dft_plugin", "check", "--host", "trl", str(config), PYTHONIOENCODING=encoding)
    assert "Traceback" not in done.stderr
    assert ("?.yml" if encoding == "ascii" else "\\udcff.yml") in done.stdout


def test_a_shell_completes_the_names_of_losses_without_torch():
    code = "import sys; from dft_plugin.cli import completing; print(completing.losses('e'), 'torch' in sys.modules)"
    assert python("-c", code).stdout == "['eaft'] False\n"


def test_a_shell_completes_hosts_and_what_changes_the_loss():
    assert {"axolotl", "llamafactory", "trl"} <= set(completing.hosts(""))
    assert sorted(completing.overrides("loss=d")) == ["loss=deft", "loss=dft"]
    assert completing.overrides("loss.al") == ["loss.always_learn=", "loss.alpha="]
    assert completing.overrides("lea") == []


@pytest.mark.parametrize(("words", "offered"), [("dft losses ea", "eaft"), ("dft check c.yaml loss=ea", "loss=eaft")])
def test_a_real_shell_gets_the_completions(words, offered):
    """As bash asks: the words so far, and which of them is begun."""
    asking = {"_DFT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    assert python("-m", "dft_plugin", **asking).stdout.split() == [offered]


def test_completion_can_be_installed_and_shown():
    assert {"--install-completion", "--show-completion", "--version"} <= set(
        CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).output.split()
    )


class Listing(Host):
    """Has three keys."""

    name: ClassVar[str] = "listing"
    distribution: ClassVar[str] = "pluggy"
    tested: ClassVar[str] = ">=1"
    install: ClassVar[str] = "pip install pluggy"

    def known_keys(self):
        print("a host that talks while it is imported")  # noqa: T201
        return frozenset({"learning_rate", "seed", "nested"})


class Gone(Listing):
    distribution: ClassVar[str] = "no-such-distribution-of-ours"


CATALOGUE = build_catalogue(build_manager(third_party=False))


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (
            "learning_rat",
            "override `learning_rat=1`: listing has no key `learning_rat`. Did you mean `learning_rate",
        ),
        ("alpha", "listing has no key `alpha`. An option of the loss is written `loss.alpha=1`."),
        ("loss_alpha", "listing has no key `loss_alpha`. An option of the loss is written `loss.alpha=1`."),
        ("kernel", "listing has no key `kernel`. An option of the loss is written `loss.kernel=1`."),
        ("xyz.abc", "listing has no key `xyz`. `listing` lists them in its documentation, and with `--help`."),
    ],
)
def test_an_override_that_the_host_does_not_have_is_refused_with_what_is_near(key, says, capsys):
    (problem,) = unknown_overrides(Listing(), [(key, "1"), ("seed", "3"), ("nested.a", "1")], CATALOGUE)
    assert says in problem
    assert capsys.readouterr().out == "", "a report of --json would be none"


def test_where_nobody_can_list_the_keys_nothing_is_refused():
    assert unknown_overrides(Gone(), [("xyz", "1")], CATALOGUE) == []
    assert Host.known_keys(Listing()) is None


def test_the_three_hosts_know_their_keys_where_they_are_installed():
    for entry in build_catalogue().hosts.values():
        if entry.item.installed_version() is not None:
            known = entry.item.known_keys()
            assert {"learning_rate", "output_dir", "seed"} <= known, entry.item.name
            assert "loss" not in known, entry.item.name


def test_words_of_a_command_line_are_handed_on_as_they_are(tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text("model_name_or_path: m\ndataset_name: d\nloss: eaft\n")
    words = ["--loss.alpha", "0.5", "loss[kernel]=chunked", "--json"]
    report = json.loads(CliRunner().invoke(app, ["check", str(path), *words]).stdout)
    assert (report["loss"]["name"], report["loss"]["kernel"]) == ("eaft", "chunked")
    assert report["loss"]["options"] == {"alpha": 0.5}
