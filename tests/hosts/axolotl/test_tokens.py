"""`always_learn` and factors by token in Axolotl: YAML to log."""

from __future__ import annotations

import pytest

pytest.importorskip("axolotl")

from support.axolotl_runs import train, write_config
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from dft_plugin.errors import ConflictError
from dft_plugin.hf import tokens
from dft_plugin.hf.wrapping import wrapper_of
from dft_plugin.plans import plan_for

pytestmark = pytest.mark.host

CHAT = {
    "datasets": [{"path": "data/chat.jsonl", "type": "chat_template"}],
    "chat_template": "tokenizer_default",
    "train_on_inputs": True,
    "max_steps": 1,
}


@pytest.mark.newest
def test_words_and_ids_reach_the_weights_and_the_log(home, capsys):
    loss = {"name": "dft", "always_learn": ["eos", 7], "weights": {"tokens": {5: 2.0, "word6": 0.5}}}
    run = train(write_config(home, **CHAT, loss=loss))
    tokenizer = run.trainer.processing_class
    plan = wrapper_of(run.trainer).attachment.plan
    assert plan.adjusted.always == tuple(sorted([7, tokenizer.convert_tokens_to_ids("</s>")]))
    assert plan.adjusted.factors == {5: 2.0, tokenizer.convert_tokens_to_ids("word6"): 0.5}
    assert "; always learned: 2 tokens (eos `</s>`, ids `word3`); weights: `word1` x 2, `word6` x 0.5" in (
        capsys.readouterr().err
    )
    (logged,) = run.logs
    assert 0 < logged["dft/always_learn_share"] < 1
    assert 0 < logged["dft/always_learn_prob"] < 1
    assert logged["dft/data_weight"] != 1


def test_eot_tokens_of_the_config_end_an_answer_too(home):
    """Turns of two models may end in two tokens; the chat template writes but one of them."""
    run = train(write_config(home, **CHAT, eot_tokens=["</s>", "Response"], loss={"always_learn": "eos"}))
    ids = sorted(run.trainer.processing_class.convert_tokens_to_ids(["</s>", "Response"]))
    assert wrapper_of(run.trainer).attachment.plan.adjusted.always == tuple(ids)


def test_the_template_of_a_processor_whose_contents_are_parts_is_read(home):
    processor = LlavaProcessor.from_pretrained(home / "models" / "llava")
    model = LlavaForConditionalGeneration.from_pretrained(home / "models" / "llava")
    processor.tokenizer.eos_token = None
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id = None
    end = processor.tokenizer.convert_tokens_to_ids("</s>")
    assert tokens.read(plan_for({"always_learn": "eos"}), model, processor).plan.adjusted.always == (end,)


def test_a_token_that_is_none_stops_the_run_before_it_begins(home):
    loss = {"name": "dft", "weights": {"tokens": {"word1 word2": 2.0}}}
    with pytest.raises(ConflictError, match=r"'word1 word2' is 2 tokens \(`word1`, `word2`\)"):
        train(write_config(home, **CHAT, loss=loss))
