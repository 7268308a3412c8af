"""dft_plugin on the path without being installed: a framework's trainer is not taken for a plain one."""

from __future__ import annotations

import pytest
from support import tiny
from transformers import Trainer, TrainingArguments

from dft_plugin import activate
from dft_plugin.config import plugins
from dft_plugin.errors import UnsupportedModelError
from dft_plugin.hf.not_installed import require_adapters


class OfAFramework:
    """Stands where TRL's SFTTrainer does: defined in a package that is installed."""


OfAFramework.__module__ = "pytest.trainers"


class OfAScript:
    pass


OfAScript.__module__ = "train_my_model"


def test_a_trainer_of_an_installed_package_wants_an_adapter_and_one_of_a_script_does_not():
    with pytest.raises(UnsupportedModelError, match=r"OfAFramework comes from pytest.*pip install -e \."):
        require_adapters(OfAFramework(), [])
    require_adapters(OfAFramework(), ["trl"])
    require_adapters(OfAScript(), [])


def test_activate_names_the_missing_installation(tmp_path, monkeypatch):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    made = Trainer(tiny.llama(), arguments)
    made.__class__ = type("SomeTrainer", (type(made),), {"__module__": "pytest.trainers"})
    activate(made).detach()
    monkeypatch.setattr(plugins, "entry_points", lambda group: ())
    with pytest.raises(UnsupportedModelError, match="not installed in this environment"):
        activate(made)
