"""Rules: how a setting of a host is told to be in the way, and how it is said."""

from __future__ import annotations

import pytest

from dft_plugin.config import rules
from dft_plugin.config.rules import Rule, above_one, equals, is_given, is_on, is_positive, look_up, other_than


@pytest.mark.parametrize(
    ("holds", "values"),
    [
        (is_on, [True, "true", "True", "1", 1, "yes", "y"]),
        (is_given, ["dpo", 0.1, True, ["a"]]),
        (is_positive, [0.1, "0.1", "1e-3", 3]),
        (above_one, [2, "2", 8]),
        (equals("mamba"), ["mamba"]),
        (other_than("sft"), ["dpo", "pt"]),
    ],
    ids=["is_on", "is_given", "is_positive", "above_one", "equals", "other_than"],
)
def test_what_is_in_the_way_and_what_is_not(holds, values):
    off = {
        is_on: [False, "false", "0", 0, "no", "maybe"],
        is_given: ["", 0, False, []],
        is_positive: [0, "0", 0.0, "much", [1]],
        above_one: [1, "1", 0, "many", {}],
    }.get(holds, ["llama"] if values == ["mamba"] else ["sft"])
    assert all(holds(value) for value in values)
    # A missing key is never in the way.
    assert not any(holds(value) for value in [None, *off])


def test_a_dot_leads_into_a_mapping():
    assert look_up({"a": {"b": 2}}, "a.b") == 2
    assert look_up({"a": "b"}, "a.b") is None
    assert look_up({"a": None}, "a.b") is None
    assert look_up({}, "a.b") is None


def test_a_conflict_says_key_value_and_remedy():
    rule = Rule("parallel.degree", above_one, "{value} ranks cut it.", "Set it to 1.")
    (found,) = rules.find([rule], {"parallel": {"degree": 4}})
    assert str(found) == "`parallel.degree`: 4 ranks cut it. Set it to 1."


def test_a_label_may_show_the_value():
    (found,) = rules.find([Rule("USE_RAY", is_on, "no.", "Unset it.")], {"USE_RAY": "1"}, "{key}={value}")
    assert found.key == "USE_RAY=1"


def test_a_rule_may_need_another_key_beside_its_own():
    rule = Rule("batching", equals("free"), "rows mix.", "Change it.", beside=lambda config: not config.get("varlen"))
    assert rule.holds({"batching": "free"})
    assert not rule.holds({"batching": "free", "varlen": True})
    assert not rule.holds({"varlen": False})


def test_all_conflicts_are_found_in_the_order_of_the_rules():
    table = [Rule(key, is_on, "p.", "r.") for key in ("b", "a", "c")]
    assert [found.key for found in rules.find(table, {"a": True, "b": True, "c": False})] == ["b", "a"]
