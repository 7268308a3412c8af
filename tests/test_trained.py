"""Folders of weights: what is found in them; an adapter put into a model; the metrics of several sets told apart."""

from __future__ import annotations

import json
import re

import pytest
import torch
from support import tiny

from dft_plugin.config import trained
from dft_plugin.errors import ConflictError, SettingsError
from dft_plugin.hf.evaluating import by_set

RECORD = {
    "format": 1,
    "loss": {"name": "dft", "alpha": 0.5, "kernel": "chunked", "log": ["top1"]},
    "step": 7,
    "max_steps": 9,
}


def put(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_model_says_its_loss_without_how_it_was_computed_and_how_far_it_was(tmp_path):
    put(tmp_path, config={}, dft_loss=RECORD)
    found = trained.find(tmp_path)
    assert (found.folder, found.is_adapter, found.step, found.last_step, found.epoch) == (tmp_path, False, 7, 9, None)
    assert found.loss == {"name": "dft", "alpha": 0.5}
    put(tmp_path, trainer_state={"global_step": 8, "max_steps": 20, "epoch": 0.4})
    found = trained.find(tmp_path)
    assert (found.step, found.last_step, found.epoch) == (8, 20, 0.4)


def test_an_adapter_with_a_name_of_its_own_is_a_folder_further_down_and_those_of_checkpoints_are_none(tmp_path):
    put(tmp_path, trainer_state={"global_step": 3, "max_steps": 3})
    put(tmp_path / "checkpoint-3", adapter_config={})
    inside = re.escape(f"here {tmp_path / 'checkpoint-3'}.")
    with pytest.raises(SettingsError, match=inside):
        trained.find(tmp_path)
    assert trained.adapter_in(tmp_path) is None
    own = put(tmp_path / "mine", adapter_config={})
    found = trained.find(tmp_path)
    assert (found.folder, found.is_adapter, found.step) == (own, True, 3)
    assert trained.adapter_in(tmp_path) == found
    put(tmp_path, config={})
    assert not trained.find(tmp_path).is_adapter


def test_a_record_that_cannot_be_used_is_named(tmp_path):
    put(tmp_path, config={}, dft_loss={**RECORD, "format": 99})
    found = trained.find(tmp_path)
    assert found.record is None
    assert found.loss is None
    assert "Upgrade dft-plugin" in str(found.problem)


def test_sets_whose_names_begin_alike_are_told_apart():
    metrics = {
        f"eval_{name}": value for value, name in enumerate(("a_dft/loss", "a_b_dft/loss", "a_loss", "a_b_loss"))
    }
    found = by_set({**metrics, "eval_a_runtime": 1.0, "eval_loss": 2.0, "epoch": 1.0})
    assert found == {"eval_a": {"loss": 2.0, "dft/loss": 0.0}, "eval_a_b": {"loss": 3.0, "dft/loss": 1.0}}


def test_an_adapter_has_the_precision_that_the_run_would_give_it(tmp_path):
    peft = pytest.importorskip("peft")
    from dft_plugin.hf.trained_adapter import put_adapter

    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    saved = peft.get_peft_model(tiny.llama(), config)
    for name, parameter in saved.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    saved.save_pretrained(tmp_path)
    model = peft.get_peft_model(tiny.llama().bfloat16(), config, autocast_adapter_dtype=False)
    put_adapter(model, trained.find(tmp_path))
    (active,) = model.active_adapters
    theirs = {name: p for name, p in model.named_parameters() if f".{active}." in name}
    assert len(theirs) == 4
    for name, parameter in theirs.items():
        own = saved.get_parameter(name.replace(active, "default"))
        assert torch.equal(parameter, own.to(torch.bfloat16))
    with pytest.raises(ConflictError, match="is an adapter, and with this config all of LlamaForCausalLM is trained"):
        put_adapter(tiny.llama(), trained.find(tmp_path))
