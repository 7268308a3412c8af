"""What a user says of tokens in words: which ids it comes to, what is refused, what is said of it."""

from __future__ import annotations

import pytest
import torch
from support import tiny, wording
from transformers import GenerationConfig

from dft_plugin import attach
from dft_plugin.errors import ConflictError
from dft_plugin.hf import tokens
from dft_plugin.plans import plan_for


def ids_of(model, tokenizer, **rules):
    read = tokens.read(plan_for({"name": "dft", **rules}), model, tokenizer)
    assert read.problems == ()
    return read.plan.adjusted


def problems_of(model, tokenizer, **rules):
    return tokens.read(plan_for({"name": "dft", **rules}), model, tokenizer).problems


def test_eos_is_all_that_ends_an_answer():
    """Of the generation config, of the config, of the tokenizer, and of the chat template: each another token."""
    tokenizer = wording.bytewise(eos_token="</think>")
    model = wording.model_for(tokenizer, eos_token_id=7)
    model.generation_config = GenerationConfig(eos_token_id=[9, 8])
    ids = sorted([7, 8, 9, *tokenizer.convert_tokens_to_ids(["</think>", "<|im_end|>"])])
    assert ids_of(model, tokenizer, always_learn="eos").always == tuple(ids)


def test_the_statistic_of_eos_is_of_the_same_tokens():
    tokenizer = wording.bytewise()
    model = wording.model_for(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = torch.tensor([[5, 6, end, 7]])
    with torch.no_grad():
        p = model(input_ids=ids).logits[0, 1].double().softmax(-1)[end].item()
    for loss in ("dft", {"name": "dft", "always_learn": "eos"}):
        attachment = attach(model, loss, tokenizer=tokenizer)
        model(input_ids=ids, labels=ids)
        logged = attachment.drain(training=True).as_logs()
        assert logged["dft/eos_prob"] == pytest.approx(p, rel=1e-5)
    assert logged["dft/always_learn_prob"] == pytest.approx(p, rel=1e-5)
    assert logged["dft/always_learn_share"] == pytest.approx(1 / 3)


def test_without_a_tokenizer_the_statistic_of_eos_is_of_the_configs_alone():
    model = tiny.llama()
    model.generation_config = GenerationConfig(eos_token_id=[9, 8])
    ids = torch.tensor([[5, 9, 2, 8, 7]])
    with torch.no_grad():
        p = model(input_ids=ids).logits[0].softmax(-1)
    attachment = attach(model)
    model(input_ids=ids, labels=ids)
    logged = attachment.drain(training=True).as_logs()
    assert logged["dft/eos_prob"] == pytest.approx((p[0, 9] + p[1, 2] + p[2, 8]).item() / 3, rel=1e-5)


def test_special_is_what_the_tokenizer_marks():
    tokenizer = wording.bytewise()
    new = wording.add(tokenizer, "<|tool|>", special=True)
    wording.add(tokenizer, "<plain>")
    marked = sorted([*tokenizer.convert_tokens_to_ids(list(wording.MARKS)), *new])
    assert ids_of(wording.model_for(tokenizer), tokenizer, always_learn="special").always == tuple(marked)


def test_added_is_what_the_tokenizer_of_the_base_has_not(tmp_path):
    tokenizer = wording.bytewise()
    model = wording.saved(tokenizer, tmp_path)
    new = wording.add(tokenizer, "<tool>", "</tool>")
    model.resize_token_embeddings(len(tokenizer))
    assert ids_of(model, tokenizer, always_learn="added").always == tuple(new)


def test_added_is_also_what_the_base_has_no_row_for(tmp_path):
    tokenizer = wording.bytewise()
    new = wording.add(tokenizer, "<pad>")
    model = wording.saved(tokenizer, tmp_path, vocab_size=len(tokenizer) - 1)
    model.resize_token_embeddings(len(tokenizer))
    assert ids_of(model, tokenizer, always_learn="added").always == tuple(new)


def test_a_reserved_token_of_another_text_is_added(tmp_path):
    tokenizer, base = wording.bytewise(), wording.bytewise()
    (reserved,), (renamed,) = wording.add(base, "<reserved>"), wording.add(tokenizer, "<tool>")
    assert reserved == renamed
    model = wording.saved(base, tmp_path)
    assert ids_of(model, tokenizer, always_learn="added").always == (renamed,)


def test_tokens_at_another_id_than_in_the_base_are_added(tmp_path):
    tokenizer, base = wording.bytewise(), wording.bytewise()
    wording.add(base, "<one>", "<two>")
    moved = wording.add(tokenizer, "<two>", "<one>")
    assert ids_of(wording.saved(base, tmp_path), tokenizer, always_learn="added").always == tuple(moved)


def test_kinds_and_ids_stand_together(tmp_path):
    tokenizer = wording.bytewise()
    model = wording.saved(tokenizer, tmp_path)
    (new,) = wording.add(tokenizer, "<tool>")
    model.resize_token_embeddings(len(tokenizer))
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert ids_of(model, tokenizer, always_learn=["eos", "added", 5]).always == tuple(sorted([*ends, new, 5]))


@pytest.mark.parametrize(
    ("text", "token"), [("</think>", "</think>"), (" the", "\u0120the"), ("11", "11"), ("<|im_end|>", "<|im_end|>")]
)
def test_a_text_is_the_token_that_it_is_written_as(text, token):
    tokenizer = wording.bytewise()
    adjusted = ids_of(wording.model_for(tokenizer), tokenizer, weights={"tokens": {text: 2.0}})
    assert adjusted.factors == {tokenizer.convert_tokens_to_ids(token): 2.0}


def test_a_number_is_an_id_and_its_text_is_a_text():
    tokenizer = wording.bytewise()
    adjusted = ids_of(wording.model_for(tokenizer), tokenizer, weights={"tokens": {11: 2.0, "11": 3.0}})
    assert adjusted.factors == {11: 2.0, tokenizer.convert_tokens_to_ids("11"): 3.0}


def test_tokens_that_are_always_learned_times_zero_are_refused():
    tokenizer = wording.bytewise()
    model = wording.model_for(tokenizer)
    ends = {"<|endoftext|>": 0, "<|im_end|>": 0}
    with pytest.raises(ConflictError, match=r"`loss\.always_learn: eos` gives tokens weight 1, and `loss"):
        attach(model, {"always_learn": "eos", "weights": {"tokens": ends}}, tokenizer=tokenizer)
    # Of some of a kind it is how they are left out.
    loss = {"always_learn": "eos", "weights": {"tokens": {**ends, "<|im_end|>": 1}}}
    attach(model, loss, tokenizer=tokenizer).detach()


def test_everything_that_is_wrong_is_said_at_once():
    tokenizer = wording.bytewise(None)
    size = len(tokenizer)
    model = wording.model_for(tokenizer)
    loss = {"always_learn": ["added", 5000], "weights": {"tokens": {"then": 2, 6000: 1, 5: 1, "&": 3, "123": 1}}}
    with pytest.raises(ConflictError) as raised:
        attach(model, loss, tokenizer=tokenizer)
    first, *others = raised.value.problems
    assert first.startswith(
        "`loss.always_learn: added`: the tokenizer that was saved with the base model (of no known path) cannot be "
        "loaded without a network (its config does not say where it was loaded from)"
    )
    assert first.endswith("or give the ids of the tokens in the place of `added`.")
    assert others == [
        f"`loss.always_learn`: 5000 is no token of this model, which has {size} (0 to {size - 1}).",
        f"`loss.weights.tokens`: 6000 is no token of this model, which has {size} (0 to {size - 1}).",
        "`loss.weights.tokens`: 'then' is 2 tokens (`the`, `n`); one is needed. Give factors to the tokens that it is "
        "made of, by text or id.",
        "`loss.weights.tokens`: 5 and '&' are the same token, 5. Leave one of them out.",
        "`loss.weights.tokens`: '123' is 3 tokens (`1`, `2`, `3`); one is needed. Give factors to the tokens that it "
        "is made of, by text or id. To mean the id, write 123 without quotes.",
    ]


def test_a_word_that_the_vocabulary_lacks_is_no_token():
    tokenizer = wording.wordwise()
    (problem,) = problems_of(wording.model_for(tokenizer), tokenizer, weights={"tokens": {"nothing": 2, "one": 2}})
    assert problem.startswith("`loss.weights.tokens`: 'nothing' is not in the tokenizer's vocabulary")


def test_the_unknown_token_itself_may_be_named():
    tokenizer = wording.wordwise()
    adjusted = ids_of(wording.model_for(tokenizer), tokenizer, weights={"tokens": {"<unk>": 0.0}})
    assert adjusted.factors == {tokenizer.unk_token_id: 0.0}


def test_a_base_of_which_the_tokenizer_is_gone_is_named(tmp_path):
    tokenizer = wording.bytewise()
    model = wording.saved(tokenizer, tmp_path)
    for path in tmp_path.glob("*token*"):
        path.unlink()
    (problem,) = problems_of(model, tokenizer, always_learn="added")
    assert str(tmp_path) in problem
    assert "Load the model from a folder that holds its tokenizer, or give the ids" in problem


def test_no_added_token_is_an_error(tmp_path):
    tokenizer = wording.bytewise()
    (problem,) = problems_of(wording.saved(tokenizer, tmp_path), tokenizer, always_learn=["eos", "added"])
    assert problem.endswith(
        f"({tmp_path}) has all tokens of this one. Give the ids of the tokens that you mean, or leave it out."
    )


def test_an_added_token_without_a_row_is_an_error(tmp_path):
    tokenizer = wording.bytewise()
    model = wording.saved(tokenizer, tmp_path)
    wording.add(tokenizer, "<tool>")
    (problem,) = problems_of(model, tokenizer, always_learn="added")
    assert problem.startswith("`loss.always_learn: added`: `<tool>` has no row in the model's embedding")
    assert problem.endswith("Resize it: model.resize_token_embeddings(len(tokenizer)).")


def test_a_template_that_fails_is_an_error_where_eos_is_asked_for_and_none_elsewhere():
    tokenizer = wording.bytewise("{{ raise_exception('no system message') }}")
    model = wording.model_for(tokenizer)
    (problem,) = problems_of(model, tokenizer, always_learn="eos")
    assert problem.startswith(
        "`loss.always_learn: eos`: the chat template cannot be rendered (TemplateError: no system"
    )
    assert "Give the ids of the tokens that end an answer in its place." in problem
    assert tokens.read(plan_for("dft"), model, tokenizer).ends == (tokenizer.eos_token_id,)


def test_no_end_of_an_answer_is_an_error():
    tokenizer = wording.bytewise(None)
    tokenizer.eos_token = None
    (problem,) = problems_of(wording.model_for(tokenizer, eos_token_id=None), tokenizer, always_learn="eos")
    assert problem.endswith("Set `eos_token` of the tokenizer, or give the id in the place of `eos`.")


def test_words_without_a_tokenizer_are_refused():
    with pytest.raises(ConflictError) as raised:
        attach(tiny.llama(), {"always_learn": ["eos", 5], "weights": {"tokens": {"</think>": 2}}})
    assert "name tokens by words (`eos` `</think>`), and there is no tokenizer" in str(raised.value)
    assert "attach(model, loss, tokenizer=tokenizer), or write ids." in str(raised.value)


def test_ids_need_no_tokenizer():
    model, batch = tiny.llama(), tiny.batch()
    attachment = attach(model, {"always_learn": [5, 6], "weights": {"tokens": {7: 2.0}}})
    assert attachment.plan.adjusted.always == (5, 6)
    model(**batch)
    assert "dft/always_learn_share" in attachment.drain(training=True).as_logs()


def test_a_plan_of_words_gives_no_weights():
    with pytest.raises(ConflictError, match=r"\(eos\) was not turned into ids"):
        plan_for({"always_learn": "eos"}).weigher(None)


def test_what_is_said_names_kinds_texts_and_factors(tmp_path):
    tokenizer = wording.bytewise()
    model = wording.saved(tokenizer, tmp_path)
    wording.add(tokenizer, *(f"<t{number}>" for number in range(8)))
    model.resize_token_embeddings(len(tokenizer))
    rules = {"always_learn": ["eos", "added", 5], "weights": {"tokens": {"</think>": 2.0, "11": 0.5}}}
    assert tokens.read(plan_for(rules), model, tokenizer).said == (
        "always learned: 11 tokens (eos `<|endoftext|>` `<|im_end|>`, added `<t0>` `<t1>` `<t2>` `<t3>` `<t4>` and 3 "
        "more, ids `&`); weights: `</think>` x 2, `11` x 0.5"
    )
    by_id = {"always_learn": 5, "weights": {"column": "ratio", "tokens": {7: 2}}}
    assert tokens.read(plan_for(by_id), model).said == (
        "always learned: 1 token (ids 5); weights: column `ratio`, 7 x 2"
    )
    assert tokens.read(plan_for("dft"), model, tokenizer).said == ""
