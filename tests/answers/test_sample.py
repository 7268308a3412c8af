"""`dft sample` on a tiny model: what is written, and how a run goes on."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from support import answering

from dft_plugin.errors import SettingsError

CHECKS = """
calls = 0


def long(question, answer, row):
    return len(answer.split()) > 2


def half(question, answer, row):
    return 0.5


def stops(question, answer, row):
    global calls
    calls += 1
    if calls == {stop}:
        raise KeyboardInterrupt
    return len(answer.split()) > 2


def broken(question, answer, row):
    return row["nothing"]


def wordy(question, answer, row):
    return "yes"
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A module of another test's is none of this one's.
    name = f"checks_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CHECKS.format(stop=31))
    answering.model(tmp_path / "model")
    answering.questions(tmp_path / "data.jsonl", 12)
    tmp_path.joinpath("name").write_text(name)
    return tmp_path


def words(home, function="long", **options):
    given = {
        "model": "model",
        "data": "data.jsonl",
        "verifier": f"{home.joinpath('name').read_text()}:{function}",
        "k": 6,
        "max_new_tokens": 8,
        "batch_size": 12,
        "out": "out.jsonl",
        **options,
    }
    made = []
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        made += [option] if value is True else [] if value is None else [option, str(value)]
    return made


def sampled(home, function="long", **options):
    done = answering.sample(*words(home, function, **options))
    assert done.exit_code == 0, (done.output, done.exception)
    return answering.read(home / options.get("out", "out.jsonl"))


def refused(home, function="long", **options):
    done = answering.sample(*words(home, function, **options))
    assert isinstance(done.exception, SettingsError), done.output
    return list(done.exception.problems)


def test_right_answers_become_rows_and_a_line_says_how_many(home):
    done = answering.sample(*words(home))
    rows = answering.read(home / "out.jsonl")
    questions = [row["question"] for row in answering.read(home / "data.jsonl")]
    assert rows
    for row in rows:
        (asked,), (said,) = row["prompt"], row["completion"]
        assert (asked["role"], said["role"]) == ("user", "assistant")
        assert asked["content"] in questions
        assert len(said["content"].split()) > 2
        assert "</s>" not in said["content"]
    state = json.loads((home / "out.jsonl.progress.json").read_text())["counts"]
    assert (state["questions"], state["answers"], state["rows"]) == (12, 72, len(rows)) == (12, 72, state["right"])
    assert 0 < state["cut"] < 72
    assert f"12 questions, 72 answers of {state['tokens'] / 72:.0f} tokens" in done.output
    assert f"{state['right'] / 72:.1%} right" in done.output


def test_a_run_that_was_killed_ends_as_one_that_never_stopped(home):
    sampled(home, out="never.jsonl")
    # Between a batch and the word that it is there, and in the middle of a row.
    stopped = answering.sample(*words(home, "stops"))
    assert stopped.exit_code == 130
    assert "--resume" in stopped.output
    assert json.loads((home / "out.jsonl.progress.json").read_text())["done"] not in (0, 12)
    with (home / "out.jsonl").open("a") as file:
        file.write('{"prompt": "half a ro')
    state = json.loads((home / "out.jsonl.progress.json").read_text())
    state["settings"]["--verifier"] = words(home)[words(home).index("--verifier") + 1]
    (home / "out.jsonl.progress.json").write_text(json.dumps(state))
    done = answering.sample(*words(home), "--resume")
    assert done.exit_code == 0, done.output
    assert (home / "out.jsonl").read_bytes() == (home / "never.jsonl").read_bytes()
    assert (
        json.loads((home / "out.jsonl.progress.json").read_text())["counts"]
        == (json.loads((home / "never.jsonl.progress.json").read_text())["counts"])
    )
    again = answering.sample(*words(home), "--resume")
    assert "is complete" in again.output


def test_a_file_that_is_there_is_neither_overwritten_nor_gone_on_with_otherwise(home):
    before = sampled(home, limit=3)
    (problem,) = refused(home, limit=3)
    assert "is there already" in problem
    (problem,) = refused(home, limit=4, temperature=0.5, resume=True)
    assert "--temperature was 1.0 and is 0.5" in problem
    assert "--limit was 3 and is 4" in problem
    assert "--k" not in problem
    answering.questions(home / "data.jsonl", 13)
    assert "data was" in refused(home, limit=3, resume=True)[0]
    assert answering.read(home / "out.jsonl") == before
    (home / "mine.jsonl").write_text("{}\n")
    assert "cannot be gone on with" in refused(home, out="mine.jsonl", resume=True)[0]
    assert (home / "mine.jsonl").read_text() == "{}\n"


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_written(home):
    before = sorted(path.name for path in home.iterdir())
    problems = refused(
        home,
        "longer",
        k=0,
        temperature=-1,
        top_p=0,
        keep="some",
        out="out.json",
        engine="tgi",
        data="none.jsonl",
        extract="(",
        form="alpaca",
        max_new_tokens=0,
        model=None,
        dtype="int8",
    )
    for said in (
        "--k 0",
        "--temperature -1",
        "--top-p 0",
        "--keep some",
        "--out out.json",
        "--engine tgi",
        "none.jsonl",
        "--extract (",
        "--form alpaca",
        "--max-new-tokens 0",
        "no model",
        "--verifier",
        "--dtype int8",
    ):
        assert sum(said in problem for problem in problems) == 1, (said, problems)
    assert sorted(path.name for path in home.iterdir() if path.name != "__pycache__") == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "vllm"}, "pip install vllm"),
        ({"verifier": "math-verify"}, "pip install 'dft-plugin[math]'"),
        ({"verifier": "reasoning-gym"}, "pip install 'dft-plugin[gym]'"),
        ({"verifier": "mine"}, "MODULE:FUNCTION"),
        ({"verifier": "json:loadz"}, "has no attribute 'loadz'"),
        ({"temperature": 0}, "the same answer 6 times"),
        ({"pairs": True, "k": 1}, "--k 2"),
        ({"question": "ask"}, "Its columns are question"),
        ({"engine_args": "{a: 1}"}, "--engine vllm"),
    ],
    ids=lambda one: "" if isinstance(one, str) else next(iter(one)),
)
def test_what_cannot_be_is_refused_with_what_to_do(home, options, said):
    found = {"math-verify": "math_verify", "reasoning-gym": "reasoning_gym"}.get(options.get("verifier", ""))
    if found and find_spec(found):
        pytest.skip("it is here")
    assert any(said in problem for problem in refused(home, **options))
    assert not (home / "out.jsonl").exists()


def test_a_verifier_that_fails_or_says_no_number_stops_the_run_at_its_row(home):
    assert "row 0: KeyError: 'nothing'" in refused(home, "broken")[0]
    assert "returned 'yes' for row 0" in refused(home, "wordy", out="b.jsonl")[0]


def test_a_score_is_right_from_where_it_was_said(home):
    assert sampled(home, "half", out="a.jsonl") == []
    assert sampled(home, "half", out="b.jsonl", min_score=0.5)


def test_keep_says_how_many_and_pairs_stand_a_right_answer_beside_a_wrong_one(home):
    every = sampled(home, out="all.jsonl")
    by_question = {}
    for row in every:
        by_question.setdefault(row["prompt"][0]["content"], []).append(row["completion"][0]["content"])
    two = sampled(home, out="two.jsonl", keep=2)
    kept = [row["completion"][0]["content"] for row in two]
    assert kept == [text for texts in by_question.values() for text in list(dict.fromkeys(texts))[:2]]
    assert len(sampled(home, out="one.jsonl", keep="one")) == len(by_question)
    pairs = sampled(home, out="pairs.jsonl", pairs=True)
    assert pairs
    for row in pairs:
        assert set(row) == {"prompt", "chosen", "rejected"}
        assert len(row["chosen"][0]["content"].split()) > 2
        assert len(row["rejected"][0]["content"].split()) <= 2


def test_a_form_for_each_kind_of_host(home):
    assert set(sampled(home, out="a.jsonl")[0]) == {"prompt", "completion"}
    (home / "axolotl.yml").write_text("base_model: model\ndatasets: [{path: data.jsonl}]\n")
    done = answering.sample("axolotl.yml", *words(home, model=None, data=None, out="b.jsonl"))
    assert done.exit_code == 0, (done.output, done.exception)
    turns = answering.read(home / "b.jsonl")[0]["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    plain = sampled(home, out="c.jsonl", plain=True)
    assert {type(value) for row in plain for value in row.values()} == {str}


def test_only_what_is_asked_is_sampled_and_not_what_the_model_was_saved_with(home):
    answering.model(home / "model", top_k=1, do_sample=True, repetition_penalty=4.0)
    narrow = sampled(home)
    answering.model(home / "model")
    assert narrow == sampled(home, out="b.jsonl")
    assert len({json.dumps(row["completion"]) for row in narrow}) > 12


def test_padding_changes_no_answer(home):
    batch = sampled(home, "half", min_score=0.5, temperature=0, k=1, batch_size=12, out="a.jsonl")
    alone = sampled(home, "half", min_score=0.5, temperature=0, k=1, batch_size=1, out="b.jsonl")
    assert batch == alone


def test_rows_that_are_no_questions_or_too_long_are_left_out_and_counted(home):
    rows = [
        {"question": "w3"},
        {"other": 1},
        {"question": " ".join(["w4"] * 125)},
        {"question": ""},
        {"question": "w5"},
    ]
    answering.write(home / "data.jsonl", rows)
    done = answering.sample(*words(home, "half", min_score=0.5))
    asked = {row["prompt"][0]["content"] for row in answering.read(home / "out.jsonl")}
    assert asked <= {"w3", "w5"}
    assert "2 questions" in done.output
    assert "3 rows left out" in done.output
