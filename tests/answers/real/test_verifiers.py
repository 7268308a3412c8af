"""math-verify and reasoning-gym, as they are installed."""

from __future__ import annotations

import pytest
import reasoning_gym

from dft_plugin.answers import verifying
from dft_plugin.answers.questions import question


@pytest.mark.parametrize(
    ("truth", "answer", "score"),
    [
        ("4", "The answer is $\\boxed{4}$.", 1.0),
        ("4", "so it is 4", 1.0),
        ("4", "so it is 5", 0.0),
        ("\\frac{1}{2}", "$0.5$", 1.0),
        ("We add and get $\\boxed{1/2}$.", "\\(\\frac{2}{4}\\)", 1.0),
        ("4", "", 0.0),
    ],
)
def test_results_are_compared_as_mathematics(truth, answer, score):
    verifier = verifying.find("math-verify", None)
    asked = question(0, {"question": "?", "answer": truth}, None)
    assert verifier.missing(asked) is None
    assert verifying.scored(verifier, asked, answer) == score


def test_a_row_without_a_right_answer_cannot_be_judged():
    verifier = verifying.find("math-verify", "result")
    assert "result" in verifier.missing(question(0, {"question": "?", "answer": "4"}, None))
    assert verifier.missing(question(0, {"question": "?", "result": "4"}, None)) is None


@pytest.mark.parametrize("nested", [False, True])
def test_the_dataset_that_made_a_question_scores_it(nested):
    (item,) = reasoning_gym.create_dataset("chain_sum", size=1, seed=3)
    row = {"question": item["question"], "dataset": "chain_sum", "entry": item} if nested else item
    verifier, asked = verifying.find("reasoning-gym", None), question(0, row, None)
    assert verifier.missing(asked) is None
    assert verifying.scored(verifier, asked, item["answer"]) == 1.0
    assert verifying.scored(verifier, asked, "no") < 1.0
    assert "source_dataset" in verifier.missing(question(0, {"question": "?", "answer": "4"}, None))
