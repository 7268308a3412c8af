"""How chats are written for base models whose tokenizer does not say it."""

from __future__ import annotations

import pytest
from support import training

from recipes.paper import DEEPSEEK, LLAMA
from recipes.recipe import TEMPLATES

pytestmark = pytest.mark.host

CHAT = [
    {"role": "system", "content": "w9"},
    {"role": "user", "content": "w5 w6"},
    {"role": "assistant", "content": "w7"},
]

# As the released evaluation asks (`llama-base-boxed`, `deepseek-math`), with <s> and </s> for its tokens.
WRITTEN = {
    LLAMA: (
        "<s><|start_header_id|>system<|end_header_id|>\n\nw9</s>\n"
        "<|start_header_id|>user<|end_header_id|>\n\nw5 w6</s>\n"
        "<|start_header_id|>assistant<|end_header_id|>\n\nw7</s>"
    ),
    DEEPSEEK: "<s>w9\n\nUser: w5 w6\n\nAssistant: w7</s>",
}


def tokenizer(name):
    made = training.tokenizer()
    made.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    return made


@pytest.mark.parametrize("name", WRITTEN)
def test_a_chat_is_written_as_the_evaluation_asks_and_ends_with_the_end_of_a_sequence(name):
    made = tokenizer(name)
    assert made.apply_chat_template(CHAT, tokenize=False) == WRITTEN[name]
    asked = made.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert WRITTEN[name].startswith(asked)


@pytest.mark.parametrize("name", WRITTEN)
def test_only_the_answer_and_its_end_are_marked_as_the_assistants(name):
    made = tokenizer(name)
    found = made.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    said = [token for token, own in zip(found["input_ids"], found["assistant_masks"], strict=True) if own]
    assert said == [7, 2]
