"""The commands that a user types, each in a process of its own: `axolotl`, with and without autoload, and `dft`."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("axolotl")

from support import autoloading
from support.axolotl_runs import SAVED, TWO_RANKS, assert_same, command, write_config

from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host

RANKS = "cpu_ranks.CpuRanks"


@pytest.fixture
def autoload_on():
    with autoloading.enabled():
        yield


def test_preprocess_and_train_with_the_plugin_in_the_yaml(home, expected):
    write_config(home, **SAVED, dataset_prepared_path="own")
    assert command(home, "axolotl", "preprocess", "config.yml").returncode == 0
    assert any((home / "own").iterdir())
    assert_same(home, command(home, "axolotl", "train", "config.yml", "--launcher", "python"), expected)


@pytest.mark.parametrize(
    "launcher", ["accelerate", *(pytest.param(one, marks=pytest.mark.full) for one in ("python", "torchrun"))]
)
def test_autoload_makes_one_line_enough_for_the_unmodified_command(launcher, home, expected, autoload_on):
    two = launcher == "torchrun"
    write_config(
        home,
        **SAVED,
        plugins=[RANKS],
        micro_batch_size=2 if two else 4,
    )
    extra = TWO_RANKS if two else ()
    done = command(home, "axolotl", "train", "config.yml", "--launcher", launcher, *extra)
    assert_same(home, done, expected)


def test_autoload_stops_the_run_where_our_package_is_broken(home, autoload_on):
    write_config(home, drop=["plugins"])
    broken = home / "broken"
    broken.mkdir()
    (broken / "dft_axolotl.py").write_text("import a_module_that_is_gone")
    done = command(home, "axolotl", "train", "config.yml", "--launcher", "python", PYTHONPATH=str(broken))
    assert done.returncode != 0
    assert "PluginError: autoload: dft_axolotl.autoload could not patch axolotl.cli.config" in done.stderr


@pytest.mark.parametrize("launcher", ["python", pytest.param("torchrun", marks=pytest.mark.newest)])
def test_dft_train_needs_the_one_line_only(launcher, home, expected):
    two = launcher == "torchrun"
    # Axolotl itself reads JSON as YAML, and so no tabs.
    name = "config.yml" if two else "config.json"
    text = write_config(home, name, **SAVED, plugins=[RANKS], micro_batch_size=1, learning_rate=5.0).read_text()
    overrides = [
        f"micro_batch_size={2 if two else 4}",
        "learning_rate=1.0",
        "output_dir=other",
        "gradient_checkpointing=no",
    ]
    overrides += [word.removeprefix("--") for word in TWO_RANKS] if two else []
    done = command(home, "dft", "train", name, f"launcher={launcher}", *overrides)
    assert_same(home, done, expected, "other")
    assert (home / name).read_text() == text


def test_dft_train_starts_axolotls_default_launcher(home, expected):
    write_config(home, **SAVED, drop=["plugins"], loss="nll")
    assert_same(home, command(home, "dft", "train", "config.yml", "loss=dft"), expected)


def test_dft_check_reports_what_the_plugin_would(home):
    write_config(home, drop=["plugins"], chunked_cross_entropy=True)
    fine = command(home, "dft", "check", "config.yml")
    assert (fine.returncode, "replaces  chunked_cross_entropy" in fine.stdout) == (0, True), fine.stderr
    write_config(home, rl="dpo", use_eaft=True)
    refused = command(home, "dft", "check", "config.yml", "--json")
    assert refused.returncode == 1
    found = json.loads(refused.stdout)
    assert found["host"] == "axolotl"
    assert [conflict["key"] for conflict in found["conflicts"]] == ["rl", "use_eaft"]
    trained = command(home, "dft", "train", "config.yml")
    assert trained.returncode == 2
    assert "`use_eaft`: EAFT weights" in trained.stderr


def test_a_trl_that_is_too_old_is_refused_by_name(home):
    """Axolotl brings one."""
    from importlib.metadata import version

    import trl
    from trl import SFTTrainer

    from dft_trl.host import TrlHost

    its_own = f"In an environment of its own, since this one has axolotl {version('axolotl')}: pip install"
    too_old = f"trl {trl.__version__} is too old ({TrlHost.tested} was tested). {its_own}"
    (home / "sft.yaml").write_text("model_name_or_path: m\ndataset_name: d\nloss: dft\n")
    checked = command(home, "dft", "check", "sft.yaml")
    assert checked.returncode == 1
    assert f"version   {too_old}" in checked.stdout
    assert "result    a run would be refused" in checked.stdout
    trained = command(home, "dft", "train", "sft.yaml")
    assert trained.returncode == 2
    assert trained.stderr.splitlines()[-1].startswith(f"dft: {too_old}")
    with pytest.raises(ConflictError, match=r"trl .* is too old"):
        TrlHost().trainer_hook(SFTTrainer.__new__(SFTTrainer))
