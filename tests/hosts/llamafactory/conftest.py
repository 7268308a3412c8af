"""One folder with models and data for all tests of this directory; and the table of what was run."""

from __future__ import annotations

import os
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import pytest
from support import autoloading

TABLE = Path(__file__).parents[3] / "docs" / "hosts" / "llamafactory-runs.md"
VERSIONED = ("transformers", "torch", "accelerate", "peft", "bitsandbytes", "datasets")
HEADER = """\
# LLaMA-Factory: what was run

Written by the tests: `DFT_WRITE_DOCS=1 nox -s llamafactory`. Each line is a claim that a test of
`tests/hosts/llamafactory` checks by running LLaMA-Factory itself, on a CPU, with tiny models. Every run of
`make test` runs the newest version here.
"""


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A user's folder, with a space in its name."""
    from support import factory

    return factory.make_home(tmp_path_factory.mktemp("a user"))


@pytest.fixture
def autoloaded():
    with autoloading.enabled():
        yield


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Keep configs and progress of LLaMA-Factory out of a failing test's report."""
    monkeypatch.setenv("LLAMAFACTORY_VERBOSITY", "WARN")


def pytest_configure(config):
    config.stash[RESULTS] = defaultdict(lambda: defaultdict(list))


def pytest_runtest_makereport(item, call):
    """Note what passed, by file and claim."""
    if call.when == "call" and item.path.parent == Path(__file__).parent:
        file = item.path.stem.removeprefix("test_").replace("_", " ")
        claim = item.originalname.removeprefix("test_").replace("_", " ")
        kind = item.callspec.id if hasattr(item, "callspec") else ""
        item.config.stash[RESULTS][file, claim][call.excinfo is None].append(kind)


def pytest_sessionfinish(session):
    """Write this version's part of the table, if asked to."""
    results = session.config.stash[RESULTS]
    if os.environ.get("DFT_WRITE_DOCS") == "1" and results:
        written = TABLE.read_text().split("\n## ")[1:] if TABLE.is_file() else []
        parts = dict(part.split("\n", 1) for part in written)
        parts[f"LLaMA-Factory {version('llamafactory')}"] = f"\n{_versions()}\n{_rows(results)}"
        TABLE.write_text(HEADER + "".join(f"\n## {title}\n{parts[title]}" for title in sorted(parts, reverse=True)))


RESULTS = pytest.StashKey()


def _versions():
    named = ", ".join(f"{name} {version(name)}" for name in VERSIONED)
    return f"Python {python_version()}, {named}.\n"


def _rows(results):
    text = "| file | claim | for | result |\n|---|---|---|---|\n"
    for (file, claim), by_outcome in results.items():
        kinds = ", ".join(kind for outcome in by_outcome.values() for kind in outcome if kind)
        failed = by_outcome.get(False, [])
        result = "holds" if not failed else "FAILS" + (f" for {', '.join(failed)}" if any(failed) else "")
        text += f"| {file} | {claim} | {kinds} | {result} |\n"
    return text
