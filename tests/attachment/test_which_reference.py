"""Which reference: the adapters as they began, a copy, another model, columns; and what is refused."""

from __future__ import annotations

import copy
import functools
import types

import pytest
import torch
from support import attached, referred, tiny
from support.referred import LOSSES, PARTS, adapted, moved, own_logits

from dft_plugin import attach
from dft_plugin.errors import ConflictError, SettingsError, UnsupportedModelError
from dft_plugin.objectives import Clock

peft = pytest.importorskip("peft")


class TestWhichReference:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("part", ["layers", "head", "saved head"])
    def test_start_is_the_adapter_that_the_run_began_with(self, loss, part):
        model, batch = adapted(**PARTS[part]), tiny.batch()
        written, formula = LOSSES[loss]
        ref_logits = own_logits(model, batch)
        names = list(dict(model.named_parameters()))
        attach(model, {**written, "reference": "start"})
        theirs = referred.truth(moved(model), batch, ref_logits, formula)
        attached.assert_same(attached.backward(model, batch), theirs)
        assert list(dict(model.named_parameters())) == names

    @pytest.mark.parametrize("loss", LOSSES)
    def test_a_copy_is_the_model_that_the_run_began_with(self, loss):
        model, batch = tiny.llama().train(), tiny.batch()
        written, formula = LOSSES[loss]
        ref_logits = own_logits(model, batch)
        attach(model, {**written, "reference": "copy"})
        theirs = referred.truth(moved(model), batch, ref_logits, formula)
        attached.assert_same(attached.backward(model, batch), theirs)

    def test_a_copy_of_a_model_in_a_wrapper_runs_the_copy(self):
        model, batch = tiny.llama().train(), tiny.batch()
        own = model.forward

        @functools.wraps(type(model).forward)
        def wrapped(self, *args, **kwargs):
            return own(*args, **kwargs)

        model.forward = types.MethodType(wrapped, model)
        written, formula = LOSSES["asft"]
        ref_logits = own_logits(model, batch)
        attach(model, {**written, "reference": "copy"})
        moved(model)
        ours = attached.backward(model, batch)
        model.forward.detach()
        attached.assert_same(ours, referred.truth(model, batch, ref_logits, formula))

    def test_a_path_is_another_model(self, tmp_path):
        other, batch = tiny.llama(seed=3, num_hidden_layers=1), tiny.batch()
        other.save_pretrained(tmp_path)
        model = tiny.llama().train()
        written, formula = LOSSES["asft"]
        theirs = referred.truth(model, batch, own_logits(other.eval(), batch), formula)
        attach(model, {**written, "reference": str(tmp_path)})
        attached.assert_same(attached.backward(model, batch), theirs)

    @pytest.mark.parametrize("moved_away", [False, True], ids=["its base is there", "its base is what is trained"])
    def test_a_path_may_be_a_folder_of_adapters(self, moved_away, tmp_path):
        tiny.llama(seed=3).save_pretrained(tmp_path / "base")
        model, batch = type(tiny.llama()).from_pretrained(tmp_path / "base").train(), tiny.batch()
        other = peft.get_peft_model(
            type(model).from_pretrained(tmp_path / "base"), peft.LoraConfig(task_type="CAUSAL_LM", r=4)
        )
        moved(other).save_pretrained(tmp_path / "adapter")
        written, formula = LOSSES["asft"]
        theirs = referred.truth(model, batch, own_logits(other.eval(), batch), formula)
        if moved_away:
            (tmp_path / "base").rename(tmp_path / "elsewhere")
        attach(model, {**written, "reference": str(tmp_path / "adapter")})
        attached.assert_same(attached.backward(model, batch), theirs)

    @pytest.mark.parametrize(
        ("base", "says"), [(None, "no base is named there"), ("gone", "their base `gone` cannot")]
    )
    def test_adapters_of_no_known_base_are_refused(self, base, says, tmp_path):
        made = peft.get_peft_model(tiny.llama(), peft.LoraConfig(task_type="CAUSAL_LM"))
        made.peft_config["default"].base_model_name_or_path = base
        made.save_pretrained(tmp_path)
        with pytest.raises(ConflictError, match=f"holds adapters, and {says}.* `base_model_name_or_path` of "):
            attach(tiny.llama(), {"name": "asft", "reference": str(tmp_path)})

    @pytest.mark.parametrize("kernel", ["auto", "logits"])
    @pytest.mark.parametrize(
        ("model_type", "change", "own"),
        [
            ("gemma2", {"final_logit_softcapping": 2.0}, {"head_dim": 8, "final_logit_softcapping": 5.0}),
            ("granite", {"logits_scaling": 4.0}, {"logits_scaling": 1.5}),
            ("cohere", {"logit_scale": 2.0}, {}),
        ],
    )
    def test_another_model_scales_and_caps_its_logits_in_its_own_way(self, model_type, change, own, kernel, tmp_path):
        other, batch = attached.build(model_type, **{**own, **change}), tiny.batch()
        other.save_pretrained(tmp_path)
        model = attached.build(model_type, **own).train()
        for name in ("prift", "asft"):
            written, formula = LOSSES[name]
            theirs = referred.truth(model, batch, own_logits(other.eval(), batch), formula)
            attachment = attach(model, {**written, "reference": str(tmp_path), "kernel": kernel})
            for _ in range(2):
                attached.assert_same(attached.backward(model, batch), theirs)
            attachment.detach()

    def test_a_copy_of_the_model_does_not_copy_its_reference(self):
        model = tiny.llama().train()
        attachment = attach(model, {"name": "asft", "reference": "copy"})
        assert copy.deepcopy(model).forward.reference is attachment.reference

    @pytest.mark.parametrize("written", [{"name": "prift", "reference": "columns"}, {"name": "prift"}])
    def test_columns_of_the_data_are_taken(self, written):
        model, batch = adapted(), tiny.batch()
        ref_logp = -torch.rand(batch["labels"].shape)
        attach(model, written)
        ours = attached.backward(model, {**batch, "dft_column_ref_logp": ref_logp})
        model.get_base_model().forward.detach()
        kept = batch["labels"][:, 1:] != -100
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        logp = logits[:, :-1][kept].double().log_softmax(1).gather(1, batch["labels"][:, 1:][kept][:, None])[:, 0]
        assert ours[0] == pytest.approx(-(ref_logp[:, 1:][kept].double().exp() * logp).mean().item(), rel=1e-6)

    def test_nothing_is_run_before_a_loss_that_reads_it(self):
        model, batch = adapted(), tiny.batch()
        passes = []
        model.get_base_model().model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
        attachment = attach(model, {"name": "asft", "first": {"name": "nll", "for": 2}})
        attached_passes = []
        for step in (1, 1, 2):
            passes.clear()
            attachment.clock = Clock(step, 10, 0.0)
            attached.backward(model, batch)
            attached_passes.append(list(passes))
        assert attached_passes[1:] == [[True], [False, True]]


class TestRefusals:
    def test_full_training_names_what_to_write(self):
        model = tiny.llama().train()
        attach(model, "prift")
        with pytest.raises(ConflictError, match="prift compares the model with a frozen reference") as e:
            model(**tiny.batch())
        assert "`reference: copy`" in str(e.value)
        assert "`reference: columns` where your data has `ref_logp`" in str(e.value)
        attach(model, "asft")
        with pytest.raises(ConflictError, match="asft compares the model") as e:
            model(**tiny.batch())
        assert "columns" not in str(e.value)

    @pytest.mark.parametrize("word", ["base", "start"])
    def test_a_word_for_adapters_without_any(self, word):
        with pytest.raises(ConflictError, match=f"`reference: {word}` is the model without what is trained"):
            attach(tiny.llama(), {"name": "asft", "reference": word})

    def test_a_path_that_is_none(self):
        with pytest.raises(ConflictError, match="`reference: bsae` is none of base, start, copy and columns"):
            attach(tiny.llama(), {"name": "asft", "reference": "bsae"})

    def test_another_vocabulary(self, tmp_path):
        tiny.llama(vocab_size=64).save_pretrained(tmp_path)
        with pytest.raises(ConflictError, match="has 64 tokens, and the model 128"):
            attach(tiny.llama(), {"name": "asft", "reference": str(tmp_path)})

    def test_a_reference_for_a_loss_that_reads_none(self):
        with pytest.raises(SettingsError, match=r"`loss\.reference: copy`: `dft` compares with no reference"):
            attach(tiny.llama(), {"name": "dft", "reference": "copy"})

    @pytest.mark.parametrize("name", ["asft", "gift"])
    def test_columns_for_a_whole_distribution(self, name):
        with pytest.raises(SettingsError, match="reads the reference's whole distribution, which columns of numbers"):
            attach(tiny.llama(), {"name": name, "reference": "columns"})

    def test_weights_trained_beside_the_adapters(self):
        model = adapted()
        model.get_base_model().model.norm.requires_grad_(True)
        with pytest.raises(ConflictError, match=r"model\.norm\.weight are trained beside the adapters"):
            attach(model, "asft")

    def test_a_base_that_lost_a_part_to_its_adapter(self):
        model = adapted(init_lora_weights="pissa")
        with pytest.raises(ConflictError, match="init_lora_weights: pissa has taken a part out of the base weights"):
            attach(model, "asft")
        attach(model, {"name": "asft", "reference": "start"})

    def test_a_merged_adapter(self):
        model = adapted()
        model.merge_adapter()
        with pytest.raises(ConflictError, match="an adapter is merged into the base model"):
            attach(model, "asft")

    @pytest.mark.parametrize("config", [peft.PromptTuningConfig, peft.PrefixTuningConfig, peft.PromptEncoderConfig])
    @pytest.mark.parametrize("reference", [None, "copy"])
    def test_prompt_learning(self, config, reference):
        model = peft.get_peft_model(tiny.llama(), config(task_type="CAUSAL_LM", num_virtual_tokens=3))
        with pytest.raises(ConflictError, match=f"{config.__name__} trains a prompt that stands before the tokens"):
            attach(model, {"name": "prift"} | ({"reference": reference} if reference else {}))

    def test_a_prompt_that_comes_after_the_loss(self):
        llama = tiny.llama()
        attach(llama, {"name": "prift", "reference": "copy"})
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        with pytest.raises(UnsupportedModelError, match="what stands before the tokens of this batch is trained"):
            peft.get_peft_model(llama, config)(**tiny.batch())
