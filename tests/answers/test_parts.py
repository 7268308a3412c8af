"""Rows as questions, where a config's data is, patterns, and batches that are not read before they are needed."""

from __future__ import annotations

import json
import re
from itertools import count

import pytest
from support import answering

from dft_plugin.answers import asking, sources, verifying
from dft_plugin.answers.judging import Answer
from dft_plugin.answers.output import Output
from dft_plugin.answers.questions import question
from dft_plugin.answers.sources import Source
from dft_plugin.errors import SettingsError
from dft_plugin.hf.generating import Prompts

USER, SYSTEM = {"role": "user", "content": "w3 w4"}, {"role": "system", "content": "w9"}
SAID = {"role": "assistant", "content": "w5"}


@pytest.mark.parametrize(
    ("row", "text", "turns"),
    [
        ({"messages": [SYSTEM, USER, SAID]}, "w3 w4", [SYSTEM, USER]),
        ({"messages": [USER, SAID, USER, SAID]}, "w3 w4", [USER, SAID, USER]),
        ({"prompt": [USER], "completion": [SAID]}, "w3 w4", [USER]),
        ({"prompt": "w3 w4", "completion": "w5"}, "w3 w4", [USER]),
        ({"conversations": [{"from": "human", "value": "w3 w4"}, {"from": "gpt", "value": "w5"}]}, "w3 w4", [USER]),
        ({"instruction": "w3", "input": "w4"}, "w3\nw4", [{"role": "user", "content": "w3\nw4"}]),
        ({"instruction": "w3", "input": ""}, "w3", [{"role": "user", "content": "w3"}]),
    ],
)
def test_a_question_is_all_up_to_the_last_turn_of_the_user(row, text, turns):
    found = question(0, row, None)
    assert found.text == text
    assert list(found.messages) == turns


@pytest.mark.parametrize("row", [{}, {"question": "  "}, {"messages": [SAID]}, {"messages": []}, {"text": "w3"}])
def test_a_row_without_a_question_is_none(row):
    assert question(0, row, None) is None


def test_the_template_is_the_tokenizers_and_plain_leaves_it_out():
    tokenizer = answering.tokenizer()
    asked = question(0, {"messages": [SYSTEM, USER]}, None)
    assert tokenizer.convert_ids_to_tokens(Prompts(tokenizer, plain=False).tokens(asked)) == (
        ["<s>", "w9", "</s>", "<s>", "w3", "w4", "</s>", "w15"]
    )
    assert tokenizer.convert_ids_to_tokens(Prompts(tokenizer, plain=True).tokens(asked)) == ["w3", "w4"]


def test_the_data_of_each_hosts_config_is_found(tmp_path):
    info = {"mine": {"file_name": "rows.json"}, "theirs": {"hf_hub_url": "a/b"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    factory = {"stage": "sft", "dataset_dir": str(tmp_path)}
    found = [
        (Source("a/b", "train"), {"dataset_name": "a/b", "dataset_train_split": "train[:100]"}),
        (Source("rows.jsonl"), {"datasets": [{"path": "json", "data_files": "rows.jsonl"}]}),
        (Source("a/c", "part"), {"datasets": [{"path": "a/c", "split": "part", "type": "chat_template"}]}),
        (Source(str(tmp_path / "rows.json")), {**factory, "dataset": "mine, other"}),
        (Source("a/b"), {**factory, "dataset": "theirs"}),
        (Source("a/d"), {"dataset": ["a/d#500", "a/e"]}),
        (Source("rows.parquet"), {"data": {"train_files": "rows.parquet"}}),
    ]
    for source, config in found:
        assert sources.of_config(config) == source
    with pytest.raises(SettingsError, match="--data"):
        sources.of_config({"model_name_or_path": "m"})


def test_a_line_that_is_no_row_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a"}\n\n{"question": \n')
    with pytest.raises(SettingsError, match="line 3, is no JSON"):
        list(Source(str(path)).rows())
    path.write_text("[1]\n")
    with pytest.raises(SettingsError, match="line 1, is a list"):
        list(Source(str(path)).rows())


@pytest.mark.parametrize(
    ("pattern", "found"),
    [(None, "3 + 4 = 7."), (r"-?\d+", "7"), (r"= (\d)", "7"), (r"x", ""), (r"(9)?\.", "")],
)
def test_the_last_match_is_what_is_verified(pattern, found):
    assert verifying.extracted("3 + 4 = 7.", None if pattern is None else re.compile(pattern)) == found


class Endless:
    """Rows without end: whoever holds them all never comes back."""

    def __init__(self):
        self.read = 0

    def rows(self):
        for number in count():
            self.read += 1
            yield {"question": f"w{number}"}


class Echo:
    """Answers at once, and sees how far the data was read by then."""

    def __init__(self, source):
        self.source, self.ahead = source, []

    def unfit(self, asked):
        return None

    def answers(self, asked, k):
        self.ahead.append(self.source.read - asked[0].number)
        return [[Answer("w3", 2, True)] * k for _ in asked]


class Right:
    def missing(self, asked):
        return None

    def score(self, asked, answer):
        return 1.0


def test_no_more_than_a_batch_of_rows_is_held(tmp_path):
    plan = asking.Plan(None, 2, 5, 23, Right(), None, 1.0, None, "messages", False)
    source, output = Endless(), Output(tmp_path / "out.jsonl", {})
    assert output.problems(resume=False) == []
    output.open()
    engine = Echo(source)
    asking.ask(source, plan, engine, output, lambda rows: None)
    assert len(answering.read(tmp_path / "out.jsonl")) == 46
    assert max(engine.ahead) == 5
