"""Unsloth rewrites TRL when it is imported, so it comes first; and the page of what was run."""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = ("unsloth", "unsloth_zoo", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")

os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")

INSTALLED = find_spec("unsloth") is not None

if INSTALLED:
    with warnings.catch_warnings():
        # What its imports say is not about us.
        warnings.simplefilter("ignore")
        import_module("unsloth")


def pytest_configure(config):
    if INSTALLED and os.environ.get("DFT_WRITE_DOCS") == "1":
        from support.runs_page import RunsPage

        page = Path(__file__).parents[3] / "docs" / "hosts" / "unsloth-runs.md"
        config.pluginmanager.register(RunsPage("Unsloth", "unsloth", "tests/hosts/unsloth", page, PACKAGES))


@pytest.fixture(autouse=True)
def plain_logits(monkeypatch):
    """Have no switch of Unsloth's be set by somebody else."""
    for name in ("UNSLOTH_RETURN_HIDDEN_STATES", "UNSLOTH_RETURN_LOGITS"):
        monkeypatch.delenv(name, raising=False)
