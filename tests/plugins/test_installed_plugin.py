"""A third party's objective, installed by pip, is listed, configured and trained with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.host

SAMPLE = Path(__file__).parent / "dft-sqrt"

TRAIN = """
import sys, tempfile
from pathlib import Path
import torch
from dft_plugin import activate
from support import oracle, tiny, training
trainer = training.trainer(Path(sys.argv[1]), max_steps=1)
batch = next(iter(trainer.get_train_dataloader()))
expected = oracle.causal_loss(trainer.model, batch, lambda p: 0.5 * p.sqrt()).item()
activate(trainer, {"name": "sqrt", "scale": 0.5})
trainer.train()
print(training.losses(trainer)[0] / expected)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the sample installed; offline, so without build isolation."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(SAMPLE)], check=True)
    return target


def run(site, *words):
    lib = Path(__file__).parents[1] / "lib"
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{lib}", "COLUMNS": "200"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, check=False)


def test_its_objective_is_listed_with_its_owner(site):
    listed = run(site, "-m", "dft_plugin.cli", "losses").stdout
    (row,) = [line for line in listed.splitlines() if "sqrt(p)" in line]
    assert "scale (1.0)" in row
    assert "dft-sqrt:sqrt" in row


def test_its_objective_trains_with_its_options(site, tmp_path):
    done = run(site, "-c", TRAIN, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(1, rel=1e-6)
    assert "dft: loss sqrt(scale=0.5) is on" in done.stderr


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
