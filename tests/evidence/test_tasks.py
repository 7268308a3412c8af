"""What the models are taught and asked."""

from __future__ import annotations

from random import Random

import pytest

from evidence import tasks
from evidence.alphabet import NEW, decode, encode
from evidence.cells import cells
from evidence.demonstrations import Demonstrations
from evidence.prior import Prior
from evidence.sampling import LONGEST


@pytest.mark.parametrize("style", range(6))
def test_a_right_sum_comes_to_what_it_is(style):
    rng = Random(style)
    for digits in (3, 4):
        one = tasks.add(rng, style, digits=digits)
        a, b = one.prompt.removesuffix("=").split("+")
        assert tasks.said(one.answer) == one.truth == str(int(a) + int(b))
        assert decode(encode(one.answer)) == one.answer
        assert len(one.answer) + 1 <= LONGEST


def test_a_sum_is_worked_out_from_the_right_with_its_carries():
    class Given(Random):
        def randrange(self, *args):
            return numbers.pop()

    numbers = [0, 378, 125]
    assert tasks.add(Given(), 0) == tasks.Example("125+378=", "5+8+0:3|1;2+7+1:0|1;1+3+1:5|0;#503", "503")


@pytest.mark.parametrize("mistake", ["any", "same"])
def test_a_wrong_sum_is_wrong_in_one_digit(mistake):
    rng = Random(1)
    for _ in range(200):
        one = tasks.add(rng, 0, mistake=mistake)
        said = tasks.said(one.answer)
        assert len(said) == len(one.truth)
        wrong = [place for place, (x, y) in enumerate(zip(said, one.truth, strict=True)) if x != y]
        assert len(wrong) == 1
        if mistake == "same":
            assert wrong == [len(said) - 1]
            assert int(said[-1]) == (int(one.truth[-1]) + 1) % 10


@pytest.mark.parametrize("kind", ["sums", "new facts"])
def test_the_share_of_wrong_demonstrations_is_what_was_asked_for(kind):
    drawn = Demonstrations(kind, wrong=0.4).draw(1)
    wrong = sum(tasks.said(one.answer) != one.truth for one in drawn) / len(drawn)
    assert wrong == pytest.approx(0.4, abs=0.04)
    assert Demonstrations(kind, wrong=0.4).draw(1) == drawn
    assert Demonstrations(kind, wrong=0.4).draw(2) != drawn


def test_new_facts_are_not_in_pre_training_and_contradicted_ones_are():
    known = {fact.prompt: fact.truth for fact in tasks.world()[: tasks.FACTS]}
    assert not known.keys() & {fact.prompt for fact in Demonstrations("new facts").facts()}
    contradicted = Demonstrations("facts contradicted").facts()
    assert known.keys() == {fact.prompt for fact in contradicted}
    assert all(known[fact.prompt] != fact.truth for fact in contradicted)


def test_pre_training_has_neither_the_new_tokens_nor_the_unseen_style():
    rng, prior = Random(3), Prior(steps=1)
    seen = [prior._example(rng) for _ in range(4000)]
    assert not set(NEW) & set("".join(one.prompt + one.answer for one in seen))
    assert not any("Z" in one.answer and "#" in one.answer for one in seen)
    rare = Prior(steps=1, unseen_style=0.02)
    share = [("Z" in one.answer) for one in (rare._example(rng) for _ in range(8000)) if "#" in one.answer]
    assert 0.01 < sum(share) / len(share) < 0.03


def test_the_problems_of_the_tests_are_the_same_for_all():
    assert Demonstrations().tests(8) == Demonstrations(wrong=0.4).tests(8)


def test_each_group_has_one_cell_at_which_its_rates_are_chosen_and_no_name_stands_twice():
    every = cells()
    assert len({cell.name for cell in every}) == len(every)
    for group in {cell.group for cell in every}:
        assert sum(cell.tuned_here for cell in every if cell.group == group) == 1
