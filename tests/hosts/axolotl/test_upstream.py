"""Faults of Axolotl 0.21 and what it pins, each with the smallest that shows it; when one is mended, a test fails."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

pytest.importorskip("axolotl")

from axolotl.integrations.base import PluginManager
from support.axolotl_runs import evaluate, since, write_config
from torch import nn

pytestmark = [pytest.mark.host, pytest.mark.full, since("0.21")]


def test_axolotl_datasets_cannot_be_imported_first():
    """It and axolotl.utils.data.wrappers import each other; `dft_axolotl.calls` imports the latter before."""
    done = subprocess.run(
        [sys.executable, "-c", "import axolotl.datasets"], capture_output=True, text=True, check=False
    )
    assert "cannot import name 'TokenizedPromptDataset' from partially initialized module" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="it is missing where there is none")
def test_a_model_with_replaced_classes_needs_torchvision():
    """Axolotl replaces classes of Mamba; transformers lists all its modules then, old names of processors as well."""
    from transformers.monkey_patching import apply_patches, register_patch_mapping

    register_patch_mapping({"NoSuchClass": nn.Identity})
    with pytest.raises(ModuleNotFoundError, match="torchvision"), apply_patches():
        pass


def test_evaluate_shows_its_trainer_to_no_plugin(home, monkeypatch):
    """So context parallelism, whose plugin is Axolotl's own, is not set up there."""
    shown = []
    monkeypatch.setattr(PluginManager, "post_trainer_create", lambda self, cfg, trainer: shown.append(trainer))
    evaluate(write_config(home, val_set_size=0.25, drop=["loss", "plugins"]))
    assert shown == []
