"""A third party's objective, installed by pip, is listed, configured and trained with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.host

HERE = Path(__file__).parent
SAMPLE = HERE / "dft-sqrt"
PROJECTS = {"sqrt": SAMPLE, "downweight": HERE / "dft-downweight", "sequence_mean": HERE / "dft-sequence-mean"}
OPTIONS = {"sqrt": "(scale=0.5)", "downweight": "(ids=(5, 9, 17), factor=0.25)", "sequence_mean": ""}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the samples installed; offline, so without build isolation."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), *map(str, PROJECTS.values())], check=True)
    return target


def run(site, *words):
    lib = Path(__file__).parents[1] / "lib"
    given = [str(site), str(lib), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(given), "COLUMNS": "200"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, check=False)


def test_each_is_listed_with_its_options_and_its_owner(site):
    listed = json.loads(run(site, "-m", "dft_plugin.cli", "losses", "--json").stdout)
    found = {one["name"]: one for one in listed}
    assert [found[name]["owner"] for name in PROJECTS] == [f"{PROJECTS[n].name}:{n}" for n in PROJECTS]
    assert [option["name"] for option in found["downweight"]["options"]] == ["ids", "factor"]
    assert found["sequence_mean"]["scope"] == "sequence"


@pytest.mark.parametrize("name", PROJECTS)
def test_each_conforms(site, name):
    code = "from dft_plugin.config.plugins import build_catalogue; from dft_plugin.testing import check_objective\n"
    code += f"check_objective(build_catalogue().objectives[{name!r}].item)"
    done = run(site, "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("sqrt", "transformers"),
        ("downweight", "trl"),
        ("sequence_mean", "transformers"),
        pytest.param("sqrt", "trl", marks=pytest.mark.full),
        pytest.param("downweight", "transformers", marks=pytest.mark.full),
        pytest.param("sequence_mean", "trl", marks=pytest.mark.full),
    ],
)
def test_each_trains_the_step_of_its_formula(site, tmp_path, name, host):
    done = run(site, str(HERE / "one_step.py"), name, host, str(tmp_path))
    assert done.returncode == 0, done.stderr
    off = json.loads(done.stdout.splitlines()[-1])
    assert off["loss"] == pytest.approx(1, rel=1e-5)
    assert off["gradient"] < 1e-4
    assert f"dft: loss {name}{OPTIONS[name]} is on" in done.stderr


def test_check_finds_it_sound(site, tmp_path):
    config = "model_name_or_path: m\ndataset_name: d\nloss: {name: downweight, ids: [1], factor: 2}\n"
    (tmp_path / "sft.yaml").write_text(config)
    assert run(site, "-m", "dft_plugin.cli", "check", str(tmp_path / "sft.yaml")).returncode == 0


def test_its_options_are_checked_as_ours_are(site):
    code = "from dft_plugin.config.plugins import build_catalogue as c; "
    code += "c().settings({'name': 'sqrt', 'scale': -1, 'alpha': 1})"
    done = run(site, "-c", code)
    assert "2 problems" in done.stderr
    assert "`alpha` is not an option of `sqrt`" in done.stderr


def test_a_second_owner_of_the_name_is_an_error_that_names_both(site, tmp_path):
    rival = tmp_path / "rival"
    (rival / "rival-1.0.dist-info").mkdir(parents=True)
    (rival / "rival-1.0.dist-info" / "METADATA").write_text("Name: rival\nVersion: 1.0\n")
    # The module again under another name: pluggy registers an object once.
    (rival / "rival_sqrt.py").write_text((SAMPLE / "src" / "dft_sqrt.py").read_text())
    (rival / "rival-1.0.dist-info" / "entry_points.txt").write_text("[dft_plugin]\nmine = rival_sqrt\n")
    done = run(f"{site}{os.pathsep}{rival}", "-m", "dft_plugin.cli", "losses")
    assert done.returncode == 2
    assert "`sqrt` is registered by" in done.stderr
    assert "dft-sqrt:sqrt" in done.stderr
    assert "rival:mine" in done.stderr


def test_a_plugin_that_cannot_be_imported_is_named_and_the_others_work(site, tmp_path):
    (tmp_path / "broken-1.0.dist-info").mkdir()
    (tmp_path / "broken-1.0.dist-info" / "METADATA").write_text("Name: broken\nVersion: 1.0\n")
    (tmp_path / "broken-1.0.dist-info" / "entry_points.txt").write_text("[dft_plugin]\noops = no_such_module\n")
    done = run(f"{site}{os.pathsep}{tmp_path}", "-m", "dft_plugin.cli", "losses")
    assert done.returncode == 0
    assert "the plugin broken:oops is broken and left out (ModuleNotFoundError" in done.stderr
    assert "sqrt" in done.stdout
