"""The data of the recipes: drawn at random with a seed, read as the hosts read them."""

from __future__ import annotations

from collections import Counter

import pytest

from recipes.data import ASK, as_host, draw, first, reader
from recipes.paper import CODE, MATH, MULTIMODAL
from recipes.recipe import RecipeError


class TestDraw:
    def test_the_seed_decides(self):
        lines = [str(number) for number in range(1000)]
        assert list(draw(lines, 50, 1)) == list(draw(lines, 50, 1)) != list(draw(lines, 50, 2))
        assert len(set(draw(lines, 50, 1))) == 50

    def test_each_line_is_equally_likely_at_each_place(self):
        seen, first_place = Counter(), Counter()
        for seed in range(4000):
            drawn = list(draw("abcde", 2, seed))
            seen.update(drawn)
            first_place[drawn[0]] += 1
        # 1,600 and 800 expected, with standard deviations of 31 and 25.
        assert all(abs(seen[letter] - 1600) < 160 for letter in "abcde")
        assert all(abs(first_place[letter] - 800) < 130 for letter in "abcde")

    def test_the_fault_takes_the_first(self):
        assert list(first((str(number) for number in range(10)), 3)) == ["0", "1", "2"]

    def test_without_a_count_all_of_them_come_as_they_are(self):
        assert list(draw(iter("abc"), None, 1)) == ["a", "b", "c"]

    def test_too_few_are_refused(self):
        with pytest.raises(RecipeError, match="has 3 rows of use, and 4 were asked for"):
            list(draw("abc", 4, 1))


class TestRead:
    def test_mathematics_is_the_bare_problem_unless_the_sentence_is_asked_for(self):
        row = {"source": "x", "problem": "1 + 1?", "solution": "2", "messages": []}
        assert reader(MATH, {})(row) == {"question": "1 + 1?", "answer": "2", "images": []}
        assert (
            reader(MATH, {}, ASK)(row)["question"]
            == "1 + 1? Let's think step by step and output the final answer within \\boxed{}."
        )

    def test_code_is_the_best_of_its_answers(self):
        answers = [{"response": name, "overall_score": score} for name, score in (("a", 3.0), ("b", 8.5), ("c", None))]
        assert reader(CODE, {})({"instruction": "do", "completions": answers})["answer"] == "b"
        assert reader(CODE, {})({"instruction": "do", "completions": []}) is None

    def test_pictures_stand_before_the_question(self):
        read = reader(MULTIMODAL, {"question": "q", "answer": "a", "image": "i"})
        assert read({"q": "what?", "a": "that", "i": "p.png"})["question"] == "<image>what?"
        made = read({"q": "what?", "a": "that", "i": ["p.png", "r.png"]})
        assert as_host("llamafactory", made) == {
            "messages": [
                {"role": "user", "content": "<image><image>what?"},
                {"role": "assistant", "content": "that"},
            ],
            "images": ["p.png", "r.png"],
        }

    def test_columns_that_nobody_named_or_that_are_not_there_are_said(self):
        with pytest.raises(RecipeError, match="which of its columns are answer, image, question"):
            reader(MULTIMODAL, {})
        with pytest.raises(RecipeError, match="no column problem in the source; it has text, solution"):
            reader(MATH, {})({"text": "x", "solution": "y"})

    def test_trl_gets_two_parts_so_that_it_does_not_learn_the_question(self):
        made = as_host("trl", {"question": "q", "answer": "a", "images": []})
        assert made == {
            "prompt": [{"role": "user", "content": "q"}],
            "completion": [{"role": "assistant", "content": "a"}],
        }
