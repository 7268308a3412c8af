"""A folder with models and data; Axolotl's global state put back after each test."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
from contextlib import suppress
from pathlib import Path

import pytest
from support import axolotl_runs

HERE = Path(__file__).parent
INSTALLED = importlib.util.find_spec("axolotl") is not None

# Before the test modules import Axolotl, which reads it then: offline, no telemetry, on the CPU.
if INSTALLED:
    os.environ.update(axolotl_runs.ENVIRONMENT)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Models and data, made once."""
    importlib.import_module("axolotl.core.builders.causal")
    importlib.import_module("axolotl.train")
    # Axolotl and accelerate collect garbage several times in a run; a million objects of imports are none.
    gc.freeze()
    home = tmp_path_factory.mktemp("axolotl")
    importlib.import_module("support.axolotl_folder").make_folder(home)
    return home


@pytest.fixture
def home(tmp_path, shared, monkeypatch):
    """A user's folder, and the working directory."""
    (shared / "prepared").mkdir(exist_ok=True)
    for name in ("models", "data", "prepared"):
        (tmp_path / name).symlink_to(shared / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def expected(home):
    """What a command of `SAVED` must come to: the same config in this process, with the plugin in the YAML."""
    return axolotl_runs.train(axolotl_runs.write_config(home, "expected.yml", **axolotl_runs.SAVED))


@pytest.fixture(autouse=True)
def clean_axolotl():
    """Axolotl is made for one run per process: its plugins and its patches of transformers stay."""
    if not INSTALLED:
        yield
        return
    from axolotl.integrations.base import PluginManager
    from transformers.loss.loss_utils import LOSS_MAPPING

    losses, env = dict(LOSS_MAPPING), dict(os.environ)
    # From 0.21 on those of installed packages are there as soon as somebody asks for the manager.
    PluginManager.get_instance().plugins.clear()
    yield
    PluginManager.get_instance().plugins.clear()
    LOSS_MAPPING.update(losses)
    with suppress(ImportError):
        importlib.import_module("transformers.monkey_patching").clear_patch_mapping()
    os.environ.clear()
    os.environ.update(env)


def pytest_collection_modifyitems(items):
    """Axolotl and its pinned releases warn of each other in dozens of places; ours must not."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.filterwarnings("error:::dft_"))


def pytest_configure(config):
    """Write docs/hosts/axolotl-runs.md where that is asked for."""
    if os.environ.get("DFT_WRITE_DOCS") == "1":
        # Test modules are no package here (import mode importlib), so the neighbour is loaded by its path.
        spec = importlib.util.spec_from_file_location("runs_page", HERE / "runs_page.py")
        runs_page = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(runs_page)
        config.pluginmanager.register(runs_page.RunsPage(), "axolotl-runs-page")
