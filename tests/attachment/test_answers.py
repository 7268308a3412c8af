"""Whom an attachment answers, what its output holds, and what is refused."""

from __future__ import annotations

import pytest
import torch
from support import attached, oracle, tiny
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from dft_plugin import attach
from dft_plugin.errors import SettingsError, UnsupportedModelError


def test_training_returns_no_logits_and_evaluation_the_models_own():
    model, batch = tiny.llama().train(), tiny.batch()
    stock = model(**batch).logits
    attach(model)
    for _ in range(2):
        assert model(**batch).logits is None
    model.eval()
    with torch.no_grad():
        evaluated = model(**batch)
    assert torch.equal(evaluated.logits, stock)
    expected = oracle.causal_loss(model, batch).item()
    assert evaluated.loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("want_logits", [True, False, None])
def test_a_caller_may_say_whether_it_wants_logits(training, want_logits):
    model, batch = tiny.llama().train(training), tiny.batch()
    expected = attached.truth(model, batch)[0]
    attachment = attach(model)
    for _ in range(2):
        with attachment.answering(want_logits=want_logits):
            output = model(**batch)
        assert output.loss.item() == pytest.approx(expected, rel=1e-6)
        wanted = (not training) if want_logits is None else want_logits
        assert (output.logits is not None) == wanted


def test_an_evaluation_first_does_not_decide_how_training_goes():
    model, batch = tiny.llama().eval(), tiny.batch()
    attachment = attach(model)
    with torch.no_grad():
        model(**batch)
    model.train()
    theirs = attached.truth(model, {key: batch[key] for key in batch})
    attached.assert_same(attached.backward(model, batch), theirs)
    assert attachment.route.path == "lean"


@pytest.mark.parametrize("kernel", ["auto", "logits"])
def test_return_dict_false_gives_a_tuple_with_the_loss_first(kernel):
    model, batch = tiny.llama().train(), tiny.batch()
    expected = attached.truth(model, batch)[0]
    attach(model, {"name": "dft", "kernel": kernel})
    output = model(**batch, return_dict=False)
    assert isinstance(output, tuple)
    assert output[0].item() == pytest.approx(expected, rel=1e-6)


def test_hidden_states_that_were_asked_for_are_returned():
    model, batch = tiny.llama().train(), tiny.batch()
    attach(model)
    for _ in range(2):
        assert len(model(**batch, output_hidden_states=True).hidden_states) == 3


@pytest.mark.parametrize("training", [True, False])
def test_logits_to_keep_does_not_cut_what_is_scored(training):
    model, batch = tiny.llama().train(training), tiny.batch()
    expected = attached.truth(model, batch)[0]
    attach(model)
    assert model(**batch, logits_to_keep=1).loss.item() == pytest.approx(expected, rel=1e-6)


def test_no_cache_is_made_in_training():
    model, batch = tiny.llama().train(), tiny.batch()
    attach(model)
    assert model(**batch).past_key_values is None


def test_trainer_only_leaves_other_callers_the_models_own_loss():
    model, batch = tiny.llama().train(), tiny.batch()
    stock = model(**batch)
    ours = attached.truth(model, batch)[0]
    attachment = attach(model)
    attachment.trainer_only = True
    other = model(**batch)
    assert other.loss.item() == stock.loss.item()
    assert torch.equal(other.logits, stock.logits)
    assert attachment.calls == 0
    with attachment.answering():
        assert model(**batch).loss.item() == pytest.approx(ours, rel=1e-6)
        with pytest.raises(RuntimeError, match="inside"), attachment.answering(want_logits=True):
            raise RuntimeError("inside")
        assert model(**batch).logits is None
    assert model(**batch).loss.item() == stock.loss.item()
    assert attachment.calls == 2


@pytest.mark.parametrize("kernel", ["chunked", "reference"])
def test_a_model_without_output_embeddings_has_no_lean_path(kernel, caplog):
    model, batch = tiny.llama().train(), tiny.batch()
    expected = attached.truth(model, batch)
    model.get_output_embeddings = lambda: None
    attach(model, {"name": "dft", "kernel": kernel})
    with pytest.raises(
        UnsupportedModelError, match="kernel was asked for by name, but the model has no output embeddings"
    ):
        model(**batch)
    attachment = attach(model)
    attached.assert_same(attached.backward(model, batch), expected)
    assert attachment.route.path == "logits"
    assert "LlamaForCausalLM: scoring the model's logits, since the model has no output embeddings." in caplog.text


class Shouting(nn.Linear):
    """A head that is no plain linear layer."""

    def forward(self, hidden):
        return 2.0 * super().forward(hidden)


def shouting_head(model):
    head = Shouting(32, tiny.VOCAB, bias=True)
    model.lm_head = head


def patched_head(model):
    linear = model.lm_head.forward
    model.lm_head.forward = lambda hidden: 2.0 * linear(hidden)


def stacked_head(model):
    model.lm_head = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, tiny.VOCAB))


@pytest.mark.parametrize("change", [shouting_head, patched_head, stacked_head])
@pytest.mark.parametrize("kernel", ["auto", "chunked"])
def test_a_head_that_cannot_be_read_is_called(change, kernel):
    model, batch = tiny.llama().train(), tiny.batch(rows=4, length=60)
    change(model)
    theirs = attached.truth(model, batch)
    attachment = attach(model, {"name": "dft", "kernel": kernel, "scratch_mb": 1})
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)
    assert attachment.route.path == "lean"
    assert "the head" in attachment.route.why_not_lean


def bert():
    return BertForMaskedLM(
        BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )


def t5():
    return T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2))


def classifier():
    return LlamaForSequenceClassification(LlamaConfig(**tiny.SHAPE))


class Holder(nn.Module):
    """A wrapper that computes cross-entropy of its own."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def forward(self, input_ids, labels):
        logits = self.base_model(input_ids).logits
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


REFUSED = {
    t5: "T5ForConditionalGeneration is an encoder-decoder, whose labels are not shifted; only causal language models "
    "are supported. Train it without `loss:`.",
    bert: "BertForMaskedLM is not a causal language model; its loss is not the likelihood of the next token. "
    "Train it without `loss:`.",
    classifier: "LlamaForSequenceClassification is not a causal language model; its loss is not the likelihood of the "
    "next token. Train it without `loss:`.",
    lambda: nn.Linear(2, 2): "Linear is not a transformers PreTrainedModel. For a model of your own use "
    "dft_plugin.linear_token_loss or dft_plugin.token_loss.",
    lambda: Holder(tiny.llama()): "Holder holds a model, and may compute a loss by itself, of which nobody would "
    "hear. Use attach(model.base_model), and compute the loss with that; in a trainer, activate(trainer).",
    lambda: (
        tiny.llama().model
    ): "LlamaModel is not a causal language model; its loss is not the likelihood of the next token. Train it without "
    "`loss:`.",
    lambda: nn.DataParallel(
        tiny.llama()
    ): "the model is wrapped in DataParallel. Attach the loss first, then wrap the model.",
}


@pytest.mark.parametrize("make", REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_causal_language_model_is_refused(make):
    model = make()
    with pytest.raises(UnsupportedModelError) as caught:
        attach(model)
    assert str(caught.value) == REFUSED[make]
    assert "forward" not in model.__dict__


def test_an_unknown_loss_leaves_the_model_alone():
    model = tiny.llama()
    with pytest.raises(SettingsError):
        attach(model, "dtf")
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("kernel", ["auto", "logits"])
@pytest.mark.parametrize("of_positions", [False, True], ids=["rows", "positions"])
def test_a_mask_for_statistics_changes_what_is_counted_and_not_the_loss(kernel, of_positions):
    model, batch = tiny.llama().train(), tiny.batch()
    expected = attached.truth(model, batch)
    attachment = attach(model, {"name": "dft", "kernel": kernel})
    counted = torch.tensor([True, False, True])
    scored_BS = batch["labels"][:, 1:] != -100
    if of_positions:
        counted = torch.arange(batch["labels"].shape[1]).expand_as(batch["labels"]) % 3 == 0
        tokens = int((scored_BS & counted[:, :-1]).sum())
    else:
        tokens = int(scored_BS[counted].sum())
    with attachment.answering(counted_B=counted):
        attached.assert_same(attached.backward(model, batch), expected)
    assert attachment.drain(training=True).as_logs()["dft/tokens"] == tokens


def test_a_mask_made_for_another_batch_counts_all_and_says_so(caplog):
    model, batch = tiny.llama().train(), tiny.batch()
    attachment = attach(model)
    for counted in (torch.tensor([True, False]), torch.ones(3, 7, dtype=torch.bool)):
        with attachment.answering(counted_B=counted):
            model(**batch)
        tokens = int((batch["labels"][:, 1:] != -100).sum())
        assert attachment.drain(training=True).as_logs()["dft/tokens"] == tokens
    assert "rows of an evaluation batch were changed" in caplog.text
