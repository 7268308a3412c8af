"""Numbers of rows, messages and tokens, and the way of a target through code that moves labels about."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dft_plugin.config.plugins import build_catalogue
from dft_plugin.core.plan import LossPlan, TokenRules
from dft_plugin.core.targets import shift
from dft_plugin.errors import ConflictError
from dft_plugin.hf.columns import Column, columns_of, cut, of_chat, of_row, of_text, spread
from dft_plugin.hf.facts import as_bits, facts_of
from dft_plugin.hf.passports import Passports
from dft_plugin.kernels import auto
from dft_plugin.objectives import DFT, Objective
from dft_plugin.objectives.adjusted import Adjusted

FACTOR, PLAIN = Column("ratio", factor=True), Column("ratio")
CHAT = [[1, 2], [3, 4, 5], [6], [7, 8]]
IDS = [token for message in CHAT for token in message]


def render(count):
    return [token for message in CHAT[:count] for token in message]


def numbers(*values):
    return np.asarray(values, np.float32)


def test_each_token_gets_the_number_of_its_message():
    assert spread(numbers(1, 2, 3, 4), IDS, render, "row 0").tolist() == [1, 1, 2, 2, 2, 3, 4, 4]


def test_only_ends_where_the_number_changes_are_rendered():
    asked = []

    def counted(count):
        asked.append(count)
        return render(count)

    assert spread(numbers(1, 1, 1, 4), IDS, counted, "row 0").tolist() == [1, 1, 1, 1, 1, 1, 4, 4]
    assert asked == [4, 3]


def test_a_beginning_that_is_rendered_otherwise_alone_is_refused():
    def rewriting(count):
        return render(count) if count != 2 else [1, 2, 9, 3, 4, 5]

    with pytest.raises(ConflictError, match=r"row 5: the chat template renders the first 2 messages otherwise alone"):
        spread(numbers(1, 2, 3, 4), IDS, rewriting, "row 5")


def test_a_chat_that_the_host_has_rendered_otherwise_is_refused():
    with pytest.raises(ConflictError, match=r"row 5: the chat, rendered once more, gives other tokens"):
        spread(numbers(1, 2, 3, 4), [*IDS, 9], render, "row 5")


def messages(*ratios):
    return [{"role": "user", "content": "", **({} if r is None else {"ratio": r})} for r in ratios]


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ({"ratio": 0.5}, [0.5] * 8),
        ({"ratio": [1, 2, 3, 4]}, [1, 1, 2, 2, 2, 3, 4, 4]),
        ({"ratio": [1, 2, 3, 4, 5, 6, 7, 8]}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({}, [9, 9, 8, 8, 8, 7, 6, 6]),
    ],
    ids=["row", "message", "token", "key of a message"],
)
def test_what_a_column_of_a_chat_may_hold(example, expected):
    found = of_chat(PLAIN, example, messages(9, 8, 7, 6), IDS, IDS, render, "row 0")
    assert found.tolist() == expected
    assert found.dtype == np.float32


def test_a_message_without_a_number_is_refused_only_where_it_is_trained():
    labels = [-100, -100, 3, 4, 5, -100, -100, -100]
    found = of_chat(PLAIN, {}, messages(None, 2, None, None), IDS, labels, render, "row 0")
    assert found.tolist() == [1, 1, 2, 2, 2, 1, 1, 1]
    labels[5] = 6
    with pytest.raises(ConflictError, match=r"row 0: the column `ratio` has no number .None or NaN. for token 5"):
        of_chat(PLAIN, {}, messages(None, 2, None, None), IDS, labels, render, "row 0")


def test_the_first_token_needs_no_number_since_nothing_predicts_it():
    found = of_row(PLAIN, [None, 2.0, -1.0], [5, 6, 7], "row 0")
    assert np.isnan(found[0])
    assert found[1:].tolist() == [2, -1]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (PLAIN, None, "is None; give a number"),
        (PLAIN, "1", "holds '1'; give a number, or a list of numbers"),
        (PLAIN, True, "holds True; give a number"),
        (PLAIN, ["1", "2", "3"], r"holds \['1', '2', '3'\]"),
        (PLAIN, [1.0, "2", None], r"holds \[1.0, '2', None\]"),
        (PLAIN, [[1.0], [2.0, 3.0]], "holds "),
        (PLAIN, [1.0, 2.0], "holds 2 numbers for 3 tokens"),
        (PLAIN, float("nan"), "has no number .None or NaN. for token 1, which is trained; give a finite number"),
        (PLAIN, 1e39, "has inf for token 1"),
        (FACTOR, [0.0, 1.0, -0.5], "has -0.5 for token 2, which is trained; give a finite number of 0 or more"),
    ],
)
def test_bad_data_is_an_error_with_the_row(column, value, said):
    with pytest.raises(ConflictError, match=f"^row 7: the column `ratio` {said}"):
        of_row(column, value, [5, 6, 7], "row 7")


def test_a_negative_number_is_no_factor_but_may_be_a_log_probability():
    assert of_row(PLAIN, -2.0, [5, 6], "row 0").tolist() == [-2, -2]


def test_a_text_takes_a_number_or_one_for_each_of_its_tokens():
    assert of_text(PLAIN, 2, [5, 6], "row 0").tolist() == [2, 2]
    assert of_text(PLAIN, [2, 3], [5, 6], "row 0").tolist() == [2, 3]
    with pytest.raises(ConflictError, match=r"is a list of 3, and the row a text of 2 tokens"):
        of_text(PLAIN, [1, 2, 3], [5, 6], "row 0")


def test_what_is_cut_is_cut_at_the_same_end():
    assert cut([1, 2, 3], 2, "end") == [1, 2]
    assert cut([1, 2, 3], 2, "start") == [2, 3]
    assert cut([1, 2, 3], 3, "end") == [1, 2, 3]
    assert list(cut([1, 2, 3], 0, "start")) == []


def test_a_target_comes_back_with_its_columns_wherever_it_was_moved():
    passports = Passports(2)
    first = passports.send([-100, 5, 6], [numbers(0, 1, 2), numbers(0, 10, 20)])
    second = passports.send([7, -100], [numbers(3, 0), numbers(30, 0)])
    assert first[0] == second[1] == -100
    moved = np.array([[second[0], -100, first[2]], [-100, 42, first[1]]])
    labels, (one, two) = passports.receive(moved)
    assert labels.tolist() == [[7, -100, 6], [-100, 42, 5]]
    assert np.nan_to_num(one, nan=-1).tolist() == [[3, -1, 2], [-1, -1, 1]]
    assert np.nan_to_num(two, nan=-1).tolist() == [[30, -1, 20], [-1, -1, 10]]


def test_a_number_that_is_never_taken_back_is_no_id():
    assert min(Passports(0).send([1, 2], [])) >= 1 << 40


class Reads(Objective):
    name = "reads"
    summary = source = ""
    columns = frozenset({"old_logp"})


def plan(**changes):
    return LossPlan(**{"objective": DFT(), "kernel": auto, "path": "auto", "scratch_bytes": None, **changes})


def test_what_a_plan_reads():
    assert columns_of(plan()) == ()
    assert columns_of(plan(rules=TokenRules(column="ratio"))) == (FACTOR,)
    assert columns_of(plan(adjusted=Adjusted(DFT(), column="ratio"))) == (FACTOR,)
    both = plan(objective=Reads(), rules=TokenRules(column="ratio"))
    assert columns_of(both) == (Column("old_logp"), FACTOR)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("dft", set()),
        ({"name": "dft", "weights": {"column": "ratio"}}, {"ratio"}),
        ({"name": "psft", "weights": {"column": "ratio"}}, {"ratio", "old_logp"}),
        ({"name": "dft", "first": {"name": "psft", "for": 2}}, {"old_logp"}),
        ("prift", set()),
        ({"name": "prift", "reference": "columns"}, {"ref_logp"}),
    ],
)
def test_a_config_tells_what_its_data_must_hold(loss, expected):
    catalogue = build_catalogue()
    settings = catalogue.settings(loss)
    assert catalogue.columns(settings) == expected
    assert {column.name for column in columns_of(catalogue.plan(settings))} == expected


def test_bits_are_the_column_and_no_float():
    column = torch.tensor([[0.1, -2.5, 3e-38, float("inf")]])
    inputs = {"labels": torch.tensor([[1, 2, 3, 4]]), "dft_bits_old_logp": as_bits(column)}
    assert not inputs["dft_bits_old_logp"].is_floating_point()
    facts = facts_of(plan(objective=Reads()), inputs, None)
    assert torch.equal(facts.columns["old_logp"], shift(column, 0))
    assert set(inputs) == {"labels"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_column_that_was_cast_is_refused_by_name(dtype):
    inputs = {"labels": torch.tensor([[1, 2]]), "dft_column_old_logp": torch.ones(1, 2, dtype=dtype)}
    with pytest.raises(ConflictError, match=f"`old_logp` has come as {dtype}"):
        facts_of(plan(objective=Reads()), inputs, None)
