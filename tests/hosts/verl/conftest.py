"""A folder with a model and data, and this CPU as verl's device."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from support.runs_page import RunsPage

HERE = Path(__file__).parent
INSTALLED = importlib.util.find_spec("verl") is not None

# Before the test modules import verl, which reads it then.
if INSTALLED:
    from support import verl_runs

    os.environ.update(verl_runs.ENVIRONMENT)
    sys.path.insert(0, str(verl_runs.PLATFORM))


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Model and data, made once."""
    return verl_runs.make_home(tmp_path_factory.mktemp("verl"))


@pytest.fixture
def home(tmp_path, shared, monkeypatch):
    """A user's folder, and the working directory."""
    for path in shared.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pytest_collection_modifyitems(items):
    """verl and Ray warn in dozens of places; ours must not."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            item.add_marker(pytest.mark.filterwarnings("error:::dft_"))


def pytest_configure(config):
    """Write docs/hosts/verl-runs.md where that is asked for."""
    if INSTALLED and os.environ.get("DFT_WRITE_DOCS") == "1":
        page = HERE.parents[2] / "docs" / "hosts" / "verl-runs.md"
        packages = ("verl", "torch", "transformers", "peft", "accelerate", "ray", "tensordict", "hydra-core")
        config.pluginmanager.register(RunsPage("verl", "verl", "tests/hosts/verl", page, packages), "verl-runs-page")
