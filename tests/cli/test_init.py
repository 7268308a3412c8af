"""`dft init` writes a starter that the host takes, and never over a file."""

import pytest
from typer.testing import CliRunner

from dft_plugin.cli import starting
from dft_plugin.cli.app import app
from dft_plugin.cli.checking import check
from dft_plugin.errors import SettingsError, UnknownNameError


@pytest.mark.parametrize("kind", starting.KINDS)
@pytest.mark.parametrize("host", ["axolotl", "llamafactory", "trl"])
def test_a_starter_is_a_config_of_its_host_with_the_loss_on(tmp_path, host, kind):
    path = starting.write(host, kind, tmp_path / "mine.yaml")
    report = check(path)
    assert report.host.name == host
    assert report.settings.name == "dft"
    assert not report.problems
    assert not report.conflicts
    assert path.read_text().startswith("#")
    assert "mine.yaml" in path.read_text().split("\n")[0]


def test_a_file_that_is_there_stays(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    with pytest.raises(SettingsError, match="stays as it is"):
        starting.write("trl", "lora", path)
    assert path.read_text() == "mine"


def test_a_host_nearly_right_is_meant():
    with pytest.raises(UnknownNameError, match="axolotl"):
        starting.write("axolot", "lora", None)


@pytest.mark.parametrize("host", ["unsloth", "transformers"])
def test_what_starts_in_python_is_no_unknown_host(host):
    with pytest.raises(UnknownNameError) as caught:
        starting.write(host, "lora", None)
    assert str(caught.value).startswith(f"dft init {host}: no YAML starts it. Train in Python: ")
    assert str(caught.value).endswith("`dft_plugin.activate(trainer)`. Its page in the documentation shows how.")


def test_the_command_says_what_to_do_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", "trl"])
    assert done.exit_code == 0
    assert "dft check dft-lora.yaml && dft train dft-lora.yaml" in done.output
    assert CliRunner().invoke(app, ["init", "trl", "--lora", "--full"]).exit_code == 2


def test_a_path_with_a_blank_is_quoted_where_it_is_to_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", "trl", "--out", "my cfg.yaml"])
    assert "dft check 'my cfg.yaml' && dft train 'my cfg.yaml'" in done.output
    assert (tmp_path / "my cfg.yaml").read_text().startswith("# dft train 'my cfg.yaml'")
