"""Which configs train adapters, by host, and what is said of a loss that would find no reference."""

from __future__ import annotations

import pytest

from dft_axolotl.host import AxolotlHost
from dft_llamafactory.host import LlamaFactoryHost
from dft_plugin.config.checks import without_reference
from dft_plugin.config.plugins import build_catalogue, build_manager
from dft_trl.host import TrlHost

ADAPTERS = [
    (TrlHost(), {"use_peft": True}),
    (TrlHost(), {"use_peft": "true"}),
    (AxolotlHost(), {"adapter": "qlora"}),
    (AxolotlHost(), {"lora_model_dir": "somewhere"}),
    (LlamaFactoryHost(), {}),
    (LlamaFactoryHost(), {"finetuning_type": "oft"}),
]
ALL = [
    (TrlHost(), {}),
    (TrlHost(), {"use_peft": False, "lora_r": 8}),
    (AxolotlHost(), {}),
    (AxolotlHost(), {"adapter": None}),
    (LlamaFactoryHost(), {"finetuning_type": "full"}),
    (LlamaFactoryHost(), {"finetuning_type": "freeze"}),
]


@pytest.fixture(scope="module")
def catalogue():
    return build_catalogue(build_manager(third_party=False))


def said(catalogue, host, config, loss):
    return without_reference(host, config, catalogue.settings(loss), catalogue)


@pytest.mark.parametrize(("host", "config"), ALL)
def test_full_training_needs_to_be_told_which_reference(host, config, catalogue):
    for word in (None, "base", "start"):
        loss = {"name": "gift"} if word is None else {"name": "gift", "reference": word}
        (problem,) = said(catalogue, host, config, loss)
        assert "`loss: gift` compares the model with a frozen reference" in problem
        assert "{name: gift, reference: copy}" in problem
    (problem,) = said(catalogue, host, config, {"name": "dft", "first": {"name": "prift", "for": 0.1}})
    assert "`loss: prift`" in problem
    assert "`reference: columns`" in problem
    assert said(catalogue, host, config, {"name": "gift", "reference": "copy"}) == []
    assert said(catalogue, host, config, "dft") == []


@pytest.mark.parametrize(("host", "config"), ADAPTERS)
def test_adapters_have_a_base(host, config, catalogue):
    assert said(catalogue, host, config, "gift") == []


def test_a_base_that_adapters_are_merged_into_is_no_reference(catalogue):
    config = {"adapter": "lora", "relora": True}
    (problem,) = said(catalogue, AxolotlHost(), config, {"name": "dft", "first": {"name": "prift", "for": 0.1}})
    assert problem.startswith("`relora`: ReLoRA merges the adapters into the base model every `jagged_restart_steps`")
    assert problem.endswith(
        "Write `reference: copy` (a second copy of the weights) or `reference: PATH` of a model, or remove it."
    )
    assert said(catalogue, AxolotlHost(), config, {"name": "prift", "reference": "copy"}) == []
    assert said(catalogue, AxolotlHost(), config, "dft") == []
    assert said(catalogue, AxolotlHost(), {**config, "relora": False}, "prift") == []


def test_the_v1_trainer_of_llamafactory_names_its_method_in_a_mapping(monkeypatch):
    monkeypatch.setenv("USE_V1", "1")
    assert LlamaFactoryHost().trains_adapters({"peft_config": {"name": "lora"}})
    assert not LlamaFactoryHost().trains_adapters({"finetuning_type": "lora"})
