"""One folder with models and data for all tests of this directory; and the page of what was run."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from support import autoloading

HERE = Path(__file__).parent
PACKAGES = ("ms-swift", "torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes")

if importlib.util.find_spec("swift") is not None:
    from support import swift_runs

    # Before the test modules import ms-swift, which reads it then.
    os.environ.update(swift_runs.ENVIRONMENT)


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A user's folder, with a space in its name."""
    return swift_runs.make_home(tmp_path_factory.mktemp("a user"))


@pytest.fixture(scope="session")
def seeing(home):
    """The keys of a model that sees, and of what it is shown."""
    from support import swift_seeing

    return swift_seeing.make(home)


@pytest.fixture
def autoloaded():
    with autoloading.enabled():
        yield


@pytest.fixture(autouse=True)
def environment():
    """ms-swift writes its config's name, and more, into the environment of the process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def pytest_collection_modifyitems(items):
    """ms-swift and what it brings warn of each other; ours must not."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.filterwarnings("error:::dft_"))


def pytest_configure(config):
    """Write docs/hosts/swift-runs.md where that is asked for."""
    if os.environ.get("DFT_WRITE_DOCS") == "1":
        from support.runs_page import RunsPage

        page = HERE.parents[2] / "docs" / "hosts" / "swift-runs.md"
        config.pluginmanager.register(RunsPage("ms-swift", "swift", "tests/hosts/swift", page, PACKAGES))
