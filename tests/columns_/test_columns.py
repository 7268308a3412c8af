"""Numbers of rows, messages and tokens, and the way of a target through code that moves labels about."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dft_plugin.config.plugins import build_catalogue
from dft_plugin.core.plan import LossPlan, TokenRules
from dft_plugin.core.targets import shift
from dft_plugin.errors import ConflictError
from dft_plugin.hf.carrying import ColumnCollator
from dft_plugin.hf.chats import Chat, of_chat, of_example, spread
from dft_plugin.hf.columns import Column, beginnings, columns_of, cut, of_row, of_text
from dft_plugin.hf.facts import BITS, as_bits, facts_of
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
    found = of_chat(PLAIN, example, Chat(messages(9, 8, 7, 6), render), IDS, IDS, "row 0")
    assert found.tolist() == expected
    assert found.dtype == np.float32


def test_a_message_without_a_number_is_refused_only_where_it_is_trained():
    labels = [-100, -100, 3, 4, 5, -100, -100, -100]
    found = of_chat(PLAIN, {}, Chat(messages(None, 2, None, None), render), IDS, labels, "row 0")
    assert found.tolist() == [1, 1, 2, 2, 2, 1, 1, 1]
    labels[5] = 6
    with pytest.raises(ConflictError, match=r"row 0: the column `ratio` has no number .None or NaN. for token 5"):
        of_chat(PLAIN, {}, Chat(messages(None, 2, None, None), render), IDS, labels, "row 0")


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


@pytest.mark.parametrize(
    ("left", "end", "expected"),
    [(2, "end", [1, 2]), (2, "start", [2, 3]), (3, "end", [1, 2, 3]), (3, "start", [1, 2, 3]), (0, "start", [])],
)
def test_what_is_cut_is_cut_at_the_same_end(left, end, expected):
    row = {"input_ids": [7] * left, "ratio": [1, 2, 3]}
    assert cut(row, ["ratio"], end) == {"ratio": expected}


def test_a_message_that_the_host_puts_before_a_chat_has_no_number_and_one_that_it_leaves_out_needs_none():
    labels = [-100, -100, 3, 4, 5, 6, 7, 8]
    before = of_chat(PLAIN, {"ratio": [2, 3, 4]}, Chat(messages(1, 1, 1), render, more=1), IDS, labels, "row 0")
    assert before.tolist() == [1, 1, 2, 2, 2, 3, 4, 4]
    without = of_chat(PLAIN, {"ratio": [9, 1, 2, 3, 4]}, Chat(messages(*[0] * 5), render, more=-1), IDS, IDS, "row 0")
    assert without.tolist() == [1, 1, 2, 2, 2, 3, 4, 4]


def test_the_columns_of_a_row_are_read_as_it_was_tokenised():
    chat = Chat(messages(1, 2, 3, 4), render)
    for example, how, expected in (
        ({"dft_column_ratio": [5] * 8, "ratio": 2}, {"chat": chat}, [5] * 8),
        ({"ratio": [1, 2, 3, 4]}, {"chat": chat}, [1, 1, 2, 2, 2, 3, 4, 4]),
        ({"ratio": [3] * 8}, {"tokenised": True}, [3] * 8),
        ({"ratio": 3}, {}, [3] * 8),
    ):
        found = of_example([PLAIN], example, IDS, IDS, "row 0", **how)
        assert {key: row.tolist() for key, row in found.items()} == {"dft_column_ratio": expected}
    with pytest.raises(ConflictError, match=r"column `ratio`, which is not in row 0. Did you mean `ratios`?"):
        of_example([PLAIN], {"ratios": 1}, IDS, IDS, "row 0")


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


def joined(features):
    """A collator that packs all rows into one, and masks nothing between them."""
    keys = [key for key in ("input_ids", "labels") if key in features[0]]
    batch = {key: torch.tensor([[entry for feature in features for entry in feature[key]]]) for key in keys}
    return batch if "labels" in batch else {**batch, "labels": batch["input_ids"].clone()}


@pytest.mark.parametrize("keys", [("input_ids", "labels"), ("input_ids",)], ids=["labels", "labels of the collator"])
def test_behind_another_row_a_first_token_without_a_number_is_no_target(keys):
    collate = ColumnCollator(joined, [FACTOR])
    ids = [[5, 6, 7], [8, 9]]
    rows = [{**dict.fromkeys(keys, given), "ratio": [None, *range(2, 1 + len(given))]} for given in ids]
    batch = collate(rows)
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9]]
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch[BITS + "ratio"].view(torch.float32).tolist() == [[1, 2, 3, 1, 2]]
    assert collate([{**row, "ratio": [4.0] * len(row["ratio"])} for row in rows])["labels"].tolist() == [
        [*ids[0], 8, 9]
    ]


@pytest.mark.parametrize(
    "says",
    [
        {"position_ids": [0, 1, 2, 0, 1]},
        {"seq_idx": [0, 0, 0, 1, 1]},
        {"attention_mask": [1, 1, 1, 2, 2]},
        {"seq_lengths": [3, 2]},
    ],
    ids=lambda says: next(iter(says)),
)
def test_rows_that_came_packed_say_where_first_tokens_are(says):
    row = {"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9], "ratio": [None, 2, 3, None, 5], **says}
    batch = ColumnCollator(joined, [FACTOR])([row])
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9]]
    assert beginnings(row, 5).tolist() == [0, 3]
    silent = {**row, "attention_mask": [1] * 5, "position_ids": [0, 1, 2, 3, 4], "seq_idx": None, "seq_lengths": None}
    with pytest.raises(ConflictError, match=r"has no number .None or NaN. for token 3, which is trained"):
        ColumnCollator(joined, [FACTOR])([silent])


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
