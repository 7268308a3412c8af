"""Which models are trained: those whose loss asks for the next token, whatever list of transformers they stand in."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers
from support import attached, oracle, sweep, tiny
from torch import nn
from transformers import (
    BertConfig,
    BertForNextSentencePrediction,
    BertForPreTraining,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    OPTConfig,
    T5Config,
)

from dft_plugin import attach
from dft_plugin.errors import UnsupportedModelError

REAL = {
    "VoxtralForConditionalGeneration": "audio",
    "Qwen2AudioForConditionalGeneration": "audio",
    "GraniteSpeechForConditionalGeneration": "audio",
    "AudioFlamingo3ForConditionalGeneration": "audio",
    "Kosmos2ForConditionalGeneration": "image",
    "Gemma3ForConditionalGeneration": "image",
    "Gemma4ForConditionalGeneration": "image",
    "Llama4ForConditionalGeneration": "image",
    "Qwen2_5OmniThinkerForConditionalGeneration": "image",
    "Qwen3OmniMoeThinkerForConditionalGeneration": "image",
}


@pytest.mark.parametrize("name", REAL)
def test_what_sees_or_hears_is_trained_with_all_its_inputs(name):
    if not hasattr(transformers, name):
        pytest.skip("this release of transformers has no such class")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        finding = sweep.study(sweep.SECTIONS["multimodal"], name)
    if sweep.BROKEN.get(name) == transformers.__version__:
        assert (finding.kind, "no attribute 'image_outputs'" in finding.reason) == ("not run", True)
        return
    assert (finding.kind, finding.inputs) == ("lean", REAL[name]), finding.reason
    assert finding.loss_gap < 1e-6
    assert finding.grad_gap < 1e-5


def gemma3():
    """google/gemma-3-4b-it and its larger sisters, tiny."""
    text = {**tiny.SHAPE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}
    text["layer_types"] = ["sliding_attention", "full_attention"]
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 7}
    torch.manual_seed(0)
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=tiny.VOCAB - 1
    )
    return transformers.Gemma3ForConditionalGeneration(config).train()


@pytest.mark.parametrize("first", ["text", "without a mask"])
def test_gemma_3_is_trained_on_text_alone_and_its_padding_is_treated_as_its_own_loss_does(first):
    model, batch = gemma3(), tiny.batch()
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    batch["labels"][-1, -4:] = batch["input_ids"][-1, -4:]
    masked = {**batch, "labels": batch["labels"].masked_fill(batch["attention_mask"] == 0, -100)}
    stock = float(model(**batch).loss.detach())
    scored = min((batch, masked), key=lambda one: abs(attached.truth(model, one, oracle.nll)[0] - stock))
    assert attached.truth(model, scored, oracle.nll)[0] == pytest.approx(stock, rel=1e-5)
    theirs = attached.truth(model, scored)
    attach(model)
    if first != "text":
        model(**{key: value for key, value in batch.items() if key != "attention_mask"})
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)


def bert(cls):
    return cls(
        BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )


def blip(text, name="InstructBlip"):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, f"{name}Config")(
        vision_config={**small, "image_size": 16, "patch_size": 8},
        qformer_config={**small, "encoder_hidden_size": 16, "vocab_size": 64},
        text_config=text.to_dict(),
        num_query_tokens=2,
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def t5():
    return T5Config(vocab_size=64, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)


ENCODER_DECODER = "ForConditionalGeneration is an encoder-decoder, whose labels are not shifted; only causal"


NO_LANGUAGE_MODEL = " is not a causal language model; its loss is not the likelihood of the next token. Train it "
REFUSED = {
    lambda: blip(t5(), "Blip2"): f"Blip2{ENCODER_DECODER}",
    lambda: blip(t5(), "InstructBlip"): f"InstructBlip{ENCODER_DECODER}",
    lambda: LlamaForTokenClassification(LlamaConfig(**tiny.SHAPE)): f"LlamaForTokenClassification{NO_LANGUAGE_MODEL}",
    lambda: bert(BertForNextSentencePrediction): f"BertForNextSentencePrediction{NO_LANGUAGE_MODEL}",
}


@pytest.mark.parametrize("make", REFUSED, ids=range(len(REFUSED)))
def test_what_is_known_to_ask_for_something_else_is_refused_at_once(make):
    model = make()
    with pytest.raises(UnsupportedModelError) as caught:
        attach(model)
    assert str(caught.value).startswith(REFUSED[make])
    assert "without `loss:`" in str(caught.value)
    assert "forward" not in model.__dict__


def test_the_same_class_around_a_decoder_is_attached_to():
    small = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    attach(blip(OPTConfig(vocab_size=64, word_embed_proj_dim=16, **small)))


def test_a_class_whose_logits_go_by_another_name_is_refused_on_the_first_batch():
    model = bert(BertForPreTraining)
    attach(model)
    ids = torch.randint(3, 64, (2, 8))
    with pytest.raises(
        UnsupportedModelError, match=r"not known what BertForPreTraining is trained on: .* it returns no logits"
    ):
        model(input_ids=ids, labels=ids)


class Ensemble(transformers.PreTrainedModel):
    """As Qwen2.5-Omni: parts that are trained, and no forward of its own."""

    config_class = LlamaConfig

    def __init__(self, config):
        super().__init__(config)
        self.loss_type = "ForConditionalGeneration"
        self.thinker = LlamaForCausalLM(config)
        self.ears = nn.Linear(2, 2)


def test_a_model_of_parts_says_which_of_them_can_be_trained():
    model = Ensemble(LlamaConfig(**tiny.SHAPE))
    with pytest.raises(
        UnsupportedModelError,
        match=r"^Ensemble takes no labels, so it has no loss to replace\. Train a part that does: model\.thinker\.$",
    ):
        attach(model)
    attach(model.thinker)


class Renamed(LlamaForCausalLM):
    """No list of transformers knows it, nor says its name what it is."""


def test_a_class_of_ones_own_is_trained_whatever_its_name():
    torch.manual_seed(0)
    model, batch = Renamed(LlamaConfig(**tiny.SHAPE)).train(), tiny.batch()
    assert model.loss_type is None
    theirs = attached.truth(model, batch)
    attach(model)
    attached.assert_same(attached.backward(model, batch), theirs)
