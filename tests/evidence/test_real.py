"""What a real model is shown and asked; `tests/hosts/trl/test_evidence.py` trains one."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import pytest

from demo.sums import final_number, worked_out
from evidence.real import own
from evidence.real.grid import RealGrid, RealProbe, RealRun
from evidence.real.questions import Question, Shown, facts, write
from evidence.real.training import Length


@pytest.mark.parametrize(
    ("reply", "said"),
    [("12 + 3 = 15\nThe answer is 15.", "15"), ("It is -4", "-4"), ("none", ""), ("7 apples, 8.", "8")],
)
def test_the_last_number_of_a_reply_is_its_answer(reply, said):
    assert final_number(reply) == said


def test_a_wrong_step_is_carried_on_to_the_answer():
    assert worked_out("5 + 7 - 2", 0, Random(0)) == "5 + 7 = 12\n12 - 2 = 10\nThe answer is 10."
    for seed in range(8):
        text = worked_out("5 + 7 - 2", 10, Random(seed))
        assert text in (
            "5 + 7 = 22\n22 - 2 = 20\nThe answer is 20.",
            "5 + 7 = 12\n12 - 2 = 20\nThe answer is 20.",
        )


def test_the_share_of_wrong_facts_is_what_was_asked_for_and_all_are_taught():
    shown = Shown("facts", 0.4).demonstrations(1200, seed=1)
    wrong = [one for one in shown if final_number(one.demonstration) != one.truth]
    assert len(wrong) / len(shown) == pytest.approx(0.4, abs=0.05)
    assert {one.text for one in shown} == {one.text for one in facts()}
    assert Shown("facts", 0.4).held_out(150, shown) == facts()


def test_no_sum_is_asked_that_was_trained_on(monkeypatch):
    """reasoning-gym, which is not installed here, makes the sums; small ones often come twice."""
    rng = Random(4)

    def items(self, count, seed):
        pairs = [(rng.randrange(10), rng.randrange(10)) for _ in range(count)]
        return [{"question": f"{a} + {b} =", "answer": str(a + b)} for a, b in pairs]

    monkeypatch.setattr(Shown, "_items", items)
    shown = Shown("answer alone", 0.4)
    trained = shown.demonstrations(60, seed=1)
    asked = shown.held_out(30, trained)
    assert len(asked) == 30
    assert not {one.text for one in asked} & {one.text for one in trained}
    assert all(one.demonstration == one.truth for one in asked)


def test_rows_are_prompts_and_completions_of_messages(tmp_path):
    write(tmp_path, facts()[:1])
    (row,) = map(json.loads, (tmp_path / "data" / "train.jsonl").read_text().splitlines())
    asked, replied = (
        [{"role": "user", "content": facts()[0].text}],
        [{"role": "assistant", "content": facts()[0].demonstration}],
    )
    assert (row["prompt"], row["completion"]) == (asked, replied)
    (row,) = map(json.loads, (tmp_path / "chat" / "train.jsonl").read_text().splitlines())
    assert row["messages"] == asked + replied


def test_no_run_has_the_name_of_another_and_a_run_that_is_there_is_left_out():
    grid = RealGrid(model=lambda folder: None, length=Length())
    runs = grid.pending({})
    assert len({run.key for run in runs}) == len(runs)
    assert runs[0].key not in {run.key for run in grid.pending({runs[0].key: {}})}
    seeds = [run.seed for run in runs if isinstance(run, RealRun)]
    assert seeds == sorted(seeds)
    assert [run.before.cell for run in runs if isinstance(run, RealProbe)] == [
        "answer alone, 40% wrong, LoRA",
        "facts, 0% wrong, LoRA",
        "worked out, 40% wrong, LoRA",
        "own replies, 0% wrong, LoRA",
    ]


def test_another_host_repeats_one_run_of_trls():
    whole = RealGrid(model=lambda folder: None)
    (once,) = replace(whole, host="Axolotl").pending({})
    assert once.key == "real | answer alone, 40% wrong, LoRA, by Axolotl | DFT | 0.0003 | 1"
    assert replace(once, host="TRL").key in {run.key for run in whole.pending({})}
    assert replace(whole, host="Axolotl").pending({once.key: {}}) == []


def test_own_replies_are_told_apart_by_their_answers_and_a_question_may_be_in_both():
    asked = [Question("1 + 1 =", "", "2"), Question("2 + 2 =", "", "4")] * 2
    right, wrong = own.pools(asked, ["It is 2", "5", "3", "2 + 2 = 5"])
    assert right == [Question("1 + 1 =", "It is 2", "2")]
    assert wrong == [Question("2 + 2 =", "5", "4"), Question("1 + 1 =", "3", "2")]


def test_own_replies_are_asked_for_once_and_shown_in_the_share_that_was_wanted(tmp_path):
    asked = [Question(f"{number} =", "", str(number)) for number in range(40)]
    said = [one.truth if place % 2 else "no" for place, one in enumerate(asked)]
    (tmp_path / "model-own-40.json").write_text(json.dumps(said * own.TRIES))
    rows = own.demonstrations(tmp_path / "model", asked, 0.4, 2000, 8, seed=1)
    assert sum(one.demonstration == "no" for one in rows) / 2000 == pytest.approx(0.4, abs=0.04)
    (tmp_path / "model-own-40.json").write_text(json.dumps(["no"] * 40 * own.TRIES))
    with pytest.raises(RuntimeError, match="answered 0 right"):
        own.demonstrations(tmp_path / "model", asked, 0.0, 10, 8, seed=1)
