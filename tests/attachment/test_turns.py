"""What ends an assistant's turn, as chat templates write it; and what is said where that is no one token."""

from __future__ import annotations

import pytest
import torch
from support import wording

from dft_plugin import attach
from dft_plugin.errors import ConflictError
from dft_plugin.hf import tokens
from dft_plugin.hf.turns import TurnEnds, turn_ends
from dft_plugin.plans import plan_for

EACH = "{% for m in messages %}"
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
)
ONE_QUESTION = "{% if messages|length > 2 %}{{ raise_exception('one question only') }}{% endif %}"

PER_TURN = {
    "chatml": (wording.CHATML, ["<|im_end|>"]),
    "as phi": (
        EACH + "<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}<|endoftext|>",
        ["<|im_end|>"],
    ),
    "as harmony": (
        EACH + "<|im_start|>{{ m['role'] }}|{{ m['content'] }}"
        "{{ '<|endoftext|>' if loop.last else '<|im_end|>' }}{% endfor %}",
        ["<|endoftext|>", "<|im_end|>"],
    ),
    "contents are parts": (
        EACH + "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>{% endfor %}",
        ["<|im_end|>"],
    ),
    "text stands between": (EACH + "{{ m['content'] }} and so on <|im_end|>{% endfor %}", ["<|im_end|>"]),
    "the space of a template": (EACH + "{{ m['content'] }} \n<|im_end|>{% endfor %}", ["<|im_end|>"]),
    "two marks": (EACH + "{{ m['content'] }}<|im_end|><|endoftext|>{% endfor %}", ["<|im_end|>"]),
    "added, not special": (EACH + "{{ m['role'] }}: {{ m['content'] }}</think>\n{% endfor %}", ["</think>"]),
    "an ordinary piece": (EACH + "{{ m['role'] }}: {{ m['content'] }}#{% endfor %}", ["#"]),
    "an ordinary piece and a newline": (EACH + "{{ m['role'] }}: {{ m['content'] }}#\n{% endfor %}", ["#"]),
    "an ordinary piece between messages only": (
        EACH + "{{ m['role'] }}: {{ m['content'] }}{{ '' if loop.last else '#' }}{% endfor %}",
        ["#"],
    ),
    "an ordinary piece of a template with a system prompt": (
        "You help.#" + EACH + "{{ m['role'] }}: {{ m['content'] }}#{% endfor %}",
        ["#"],
    ),
    "trimmed": (EACH + "{{ m['role'] }}: {{ m['content'] | trim }}#{% endfor %}", ["#"]),
    "generation": (
        EACH
        + "{{ m['role'] }}: {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}#{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}{% endfor %}",
        ["#"],
    ),
    "generation without the end": (
        EACH
        + "{{ m['role'] }}: {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "<|im_end|>{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}",
        ["<|im_end|>"],
    ),
    "roles must alternate": (ALTERNATING + "{{ m['content'] }}<|im_end|>\n{% endfor %}", ["<|im_end|>"]),
    "one question only": (ONE_QUESTION + EACH + "{{ m['content'] }}<|im_end|>\n{% endfor %}", ["<|im_end|>"]),
    "what begins the next": (EACH + "<|im_start|>{{ m['role'] }}{{ m['content'] }}{% endfor %}", ["<|im_start|>"]),
    "one end at the very end": (
        "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}</think>"
        "{% else %}{{ m['content'] }}{% endif %}{% endfor %}<|endoftext|>",
        ["<|endoftext|>"],
    ),
    "another end at the very end, and a system prompt": (
        "<|im_start|>You help.<|im_end|>" + EACH + "<|im_start|>{{ m['role'] }}|{{ m['content'] }}"
        "{{ '<|endoftext|>' if loop.last else '<|im_end|>' }}{% endfor %}",
        ["<|endoftext|>", "<|im_end|>"],
    ),
    "none": (None, []),
}

BLANK = {
    "a newline": (EACH + "{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", "\u010a"),
    "a space": (EACH + "{{ m['role'] }}: {{ m['content'] }} {% endfor %}", "\u0120"),
}


def ends_of(tokenizer):
    return turn_ends(tokenizer, tokenizer)


@pytest.mark.parametrize("kind", PER_TURN)
def test_what_ends_a_turn_is_what_the_chat_template_writes_after_it(kind):
    template, expected = PER_TURN[kind]
    tokenizer = wording.bytewise(template)
    assert ends_of(tokenizer) == TurnEnds(frozenset(tokenizer.convert_tokens_to_ids(expected)))


def test_what_begins_a_turn_does_not_end_one():
    tokenizer = wording.bytewise(EACH + "<|im_start|>{{ m['content'] }}{% endfor %}", bos_token="<|im_start|>")
    assert ends_of(tokenizer) == TurnEnds()


def test_of_two_tokens_that_begin_alike_the_longer_is_meant():
    tokenizer = wording.bytewise(wording.CHATML.replace("<|im_end|>", "<|im_end|>!"))
    longer = wording.add(tokenizer, "<|im_end|>!", special=True)
    assert ends_of(tokenizer).ids == set(longer)


def test_a_word_of_the_vocabulary_may_end_a_turn():
    tokenizer = wording.wordwise("user", "assistant", "END")
    tokenizer.chat_template = EACH + "{{ m['role'] }} {{ m['content'] }} END {% endfor %}"
    assert ends_of(tokenizer).ids == {tokenizer.convert_tokens_to_ids("END")}
    model = wording.model_for(tokenizer)
    read = tokens.read(plan_for({"always_learn": "eos"}), model, tokenizer)
    both = tuple(sorted(tokenizer.convert_tokens_to_ids(["END", "</s>"])))
    assert (read.problems, read.ends, read.plan.adjusted.always) == ((), both, both)
    assert read.said == "always learned: 2 tokens (eos `</s>` `END`)"


@pytest.mark.parametrize("kind", BLANK)
def test_white_space_that_ends_a_turn_is_learned_and_is_in_no_statistic(kind):
    template, expected = BLANK[kind]
    tokenizer = wording.bytewise(template)
    white = tokenizer.convert_tokens_to_ids(expected)
    assert ends_of(tokenizer) == TurnEnds(blank=frozenset([white]))
    read = tokens.read(plan_for({"always_learn": "eos"}), wording.model_for(tokenizer), tokenizer)
    assert read.plan.adjusted.always == tuple(sorted([white, tokenizer.eos_token_id]))
    assert read.ends == (tokenizer.eos_token_id,)


@pytest.mark.parametrize(
    ("end", "text", "made"),
    [
        ("###", "'###'", "the tokens `#`, `#`, `#`"),
        ("END\n", "'END\\n'", "the tokens `E`, `N`, `D`, `\u010a`"),
        ("\n\n", "'\\n\\n'", "the tokens `\u010a`, `\u010a`"),
    ],
)
def test_several_tokens_of_plain_text_are_named_where_eos_is_asked_for(end, text, made):
    tokenizer = wording.bytewise(EACH + "{{ m['role'] }}: {{ m['content'] }}" + end + "{% endfor %}")
    model = wording.model_for(tokenizer)
    with pytest.raises(ConflictError) as raised:
        attach(model, {"always_learn": "eos"}, tokenizer=tokenizer)
    assert raised.value.problems == (
        f"`loss.always_learn: eos`: the chat template ends a turn in the text {text} ({made}), so nobody knows which "
        "token ends a turn. Give the ids of the tokens that end an answer in its place.",
    )
    attachment = attach(model, "dft", tokenizer=tokenizer)
    assert attachment.ends == (tokenizer.eos_token_id,), "without the word it is nobody's matter"


def test_a_word_that_the_vocabulary_lacks_is_no_end():
    tokenizer = wording.wordwise("user", "assistant")
    tokenizer.chat_template = EACH + "{{ m['role'] }} {{ m['content'] }} END {% endfor %}"
    assert "ends a turn in the text ' END ' (the tokens `<unk>`)" in ends_of(tokenizer).problem


def test_what_melts_into_the_answer_is_no_end():
    tokenizer = wording.wordwise("user", "assistant", "END")
    tokenizer.chat_template = EACH + "{{ m['role'] }} {{ m['content'] }}END {% endfor %}"
    assert "(part of a token with what stands before it)" in ends_of(tokenizer).problem


def test_a_tokenizer_that_fails_on_plain_text_is_named(monkeypatch):
    tokenizer = wording.bytewise(PER_TURN["an ordinary piece"][0])
    monkeypatch.setattr(type(tokenizer), "encode", lambda *_, **__: {}["no such piece"])
    assert ends_of(tokenizer).problem == "the tokenizer fails on the chat template's text (KeyError: 'no such piece')"


def test_a_host_that_knows_the_ends_is_asked_before_the_template():
    tokenizer = wording.bytewise(EACH + "{{ m['content'] }}###{% endfor %}")
    read = tokens.read(plan_for({"always_learn": "eos"}), wording.model_for(tokenizer), tokenizer, [5])
    assert (read.problems, read.plan.adjusted.always) == ((), tuple(sorted([5, tokenizer.eos_token_id])))


def test_a_plain_end_is_learned_and_counted():
    tokenizer = wording.bytewise(PER_TURN["an ordinary piece"][0])
    model = wording.model_for(tokenizer)
    end = tokenizer.convert_tokens_to_ids("#")
    ids = torch.tensor([[5, 6, end, 7]])
    attachment = attach(model, {"name": "dft", "always_learn": "eos"}, tokenizer=tokenizer)
    model(input_ids=ids, labels=ids)
    logged = attachment.drain(training=True).as_logs()
    assert logged["dft/always_learn_share"] == pytest.approx(1 / 3)
    assert logged["dft/eos_prob"] == pytest.approx(logged["dft/always_learn_prob"])
