"""Columns of a frozen model: the one that is trained, its base, or another, against float64 from logits."""

from __future__ import annotations

import peft
import pytest
import torch
from support import referred, tiny
from torch import nan
from transformers import Gemma2Config, Gemma2ForCausalLM

from dft_plugin.errors import ConflictError
from dft_plugin.hf.recording import config_digest, standings, weights_digest

ALL = ("ref_logp", "ref_mass", "old_logp")


def truth(model, inputs):
    """Log-probability and mass of each target, at the place of its token."""
    asked = {key: value for key, value in inputs.items() if key != "labels"}
    model.eval()
    with torch.no_grad():
        q_BSV = model(**asked).logits[:, :-1].double().softmax(-1)
    labels = inputs["labels"][:, 1:]
    own_BS1 = q_BSV.gather(-1, labels.clamp(min=0)[..., None])
    mass = torch.where(q_BSV < own_BS1, q_BSV, 0).sum(-1) + own_BS1[..., 0]
    first = torch.full((len(labels), 1), nan)
    named = {"ref_logp": own_BS1[..., 0].log(), "ref_mass": mass}
    return {name: torch.cat([first, v.masked_fill(labels == -100, nan).float()], 1) for name, v in named.items()}


def ask(model, word, columns=ALL):
    found = {}
    for standing in standings(model, word, columns):
        with standing.recording() as attached:
            found |= standing.ask(attached, tiny.batch())
    return found


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("word", [None, "columns", "base", "start", "copy"])
def test_without_adapters_it_is_the_model_in_one_pass(word):
    model = tiny.llama()
    assert len(standings(model, word, ALL)) == 1
    found, expected = ask(model, word), truth(tiny.llama(), tiny.batch())
    for name in ("ref_logp", "ref_mass"):
        assert_equal(found[name], expected[name])
    assert_equal(found["old_logp"], expected["ref_logp"])
    assert expected["ref_logp"].isnan().sum() > 10 < expected["ref_logp"].isfinite().sum()


@pytest.mark.parametrize(("word", "off"), [(None, True), ("base", True), ("start", False), ("copy", False)])
def test_adapters_are_off_for_the_base_and_never_for_what_the_model_said_itself(word, off):
    model = referred.adapted()
    base, whole = truth(tiny.llama(), tiny.batch()), truth(referred.adapted(), tiny.batch())
    assert (base["ref_logp"] - whole["ref_logp"]).nan_to_num().abs().max() > 0.1
    found = ask(model, word)
    assert_equal(found["ref_logp"], (base if off else whole)["ref_logp"])
    assert_equal(found["ref_mass"], (base if off else whole)["ref_mass"])
    assert_equal(found["old_logp"], whole["ref_logp"])


def test_another_model_by_its_path(tmp_path):
    tiny.llama(seed=1).save_pretrained(tmp_path)
    found = ask(tiny.llama(), str(tmp_path))
    assert_equal(found["ref_mass"], truth(tiny.llama(seed=1), tiny.batch())["ref_mass"])
    assert_equal(found["old_logp"], truth(tiny.llama(), tiny.batch())["ref_logp"])


def test_dropout_is_off_and_everything_is_put_back():
    model = referred.adapted(lora_dropout=0.5).train()
    forward, weights = model.base_model.model.forward, weights_digest(model, adapters=True)
    ask(model, "start")
    assert_equal(ask(model, "start")["ref_logp"], truth(referred.adapted(), tiny.batch())["ref_logp"])
    assert model.base_model.model.training
    assert model.base_model.model.forward == forward
    assert weights_digest(model, adapters=True) == weights
    assert not any(layer._disable_adapters for layer in model.modules() if hasattr(layer, "_disable_adapters"))
    assert all(p.grad is None for p in model.parameters())


def test_a_batch_without_targets_first_and_one_with_after_it():
    empty = tiny.batch()
    empty["labels"].fill_(-100)
    (standing,) = standings(tiny.llama(), None, ("ref_logp",))
    with standing.recording() as attached:
        assert standing.ask(attached, empty)["ref_logp"].isnan().all()
        found = standing.ask(attached, tiny.batch())
    assert_equal(found["ref_logp"], truth(tiny.llama(), tiny.batch())["ref_logp"])


def test_a_model_that_caps_its_logits():
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(**tiny.SHAPE, head_dim=8, final_logit_softcapping=0.5))
    expected = truth(model, tiny.batch())
    assert_equal(ask(model, None)["ref_mass"], expected["ref_mass"])


def test_an_adapter_that_changes_the_base_is_no_base():
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny.llama(), config)
    with pytest.raises(ConflictError, match="init_lora_weights: pissa"):
        standings(model, None, ("ref_logp",))


class TestDigest:
    """Two models have one digest where they say the same."""

    def test_another_seed_another_number_another_dtype(self):
        model = tiny.llama()
        digest = weights_digest(model, adapters=True)
        assert weights_digest(tiny.llama(), adapters=True) == digest
        assert weights_digest(tiny.llama(seed=1), adapters=True) != digest
        assert weights_digest(tiny.llama().bfloat16(), adapters=True) != digest
        with torch.no_grad():
            model.lm_head.weight[0, 0] += 1
        assert weights_digest(model, adapters=True) != digest

    def test_adapters_count_once_they_say_something(self):
        plain = weights_digest(tiny.llama(), adapters=True)
        config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
        new = peft.get_peft_model(tiny.llama(), config).base_model.model
        trained = referred.adapted().base_model.model
        assert weights_digest(new, adapters=True) == plain
        assert weights_digest(trained, adapters=False) == plain
        assert weights_digest(trained, adapters=True) != plain


def test_two_models_of_the_same_weights_that_compute_something_else_are_told_apart():
    one, same, other = tiny.llama(), tiny.llama(), tiny.llama()
    same.config._name_or_path = "elsewhere"
    other.config.rms_norm_eps = 0.1
    assert config_digest(one.config) == config_digest(same.config) != config_digest(other.config)
