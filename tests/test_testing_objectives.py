"""`check_objective` accepts all that is shipped, and names each thing that can be wrong with one of somebody else."""

from __future__ import annotations

import subprocess
import sys
from typing import ClassVar

import pytest
import torch
from pydantic import Field
from support.family import FORMULAS, NAMES
from support.family_soft import SOFT_FORMULAS, SOFT_NAMES
from support.made import Plain, objective, p

from dft_plugin import Number, Objective
from dft_plugin.errors import ClockError
from dft_plugin.objectives import FAMILY, Rank, Weighed
from dft_plugin.objectives.reference import mean_of_sequences
from dft_plugin.testing import check_objective


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.name)
def test_all_that_is_shipped_conforms_with_its_defaults(kind):
    check_objective(kind)


@pytest.mark.parametrize("objective", [one for one, _ in FORMULAS + SOFT_FORMULAS], ids=NAMES + SOFT_NAMES)
def test_all_that_is_shipped_conforms_with_options(objective):
    check_objective(objective)


def outsider(rows, targets):
    rank_T = rows.added["rank"]
    return 1 / (1 + rank_T.to(p(rows)))


def in_place(rows, targets):
    return rows.logp_T.exp_()


def once_more(rows, targets):
    once_more.calls += 1
    return p(rows) * once_more.calls


once_more.calls = 0

PARAMETER = torch.ones((), requires_grad=True)

WRONG = {
    "a costly statistic that is not declared": (
        objective(lambda rows, targets: torch.exp(-rows.entropy_T)),
        'it reads rows.entropy_T, which is None unless `needs` names "entropy"',
    ),
    "one that is read only if it is there": (
        objective(lambda rows, targets: p(rows) if rows.sum_p_squared_T is None else rows.sum_p_squared_T),
        'it reads rows.sum_p_squared_T, which is None unless `needs` names "sum_p_squared"',
    ),
    "a function of rows that is not declared": (
        objective(outsider),
        r"it reads rows.added\['rank'\], but `needs` does not name it",
    ),
    "a column that is not declared": (
        objective(lambda rows, targets: targets.columns["ratio"].to(p(rows))),
        r"it reads targets.columns\['ratio'\], but `columns` does not name it",
    ),
    "a position that is not declared": (
        objective(lambda rows, targets: p(rows) / (1 + targets.position_T)),
        "it reads targets.position_T, which is None unless `places` is True",
    ),
    "a sequence that is not declared": (
        objective(lambda rows, targets: p(rows) / (1 + targets.sequence_T)),
        "it reads targets.sequence_T, which is None unless `places` is True, or `scope`",
    ),
    "other tokens": (
        objective(lambda rows, targets: 1 + p(rows) - p(rows).mean()),
        "a weight depends on other tokens, and `scope` is `token`",
    ),
    "the sequence of a token": (
        objective(lambda rows, targets: mean_of_sequences(p(rows), targets), places=True),
        "a weight depends on other tokens, and `scope` is `token`",
    ),
    "other sequences": (
        objective(lambda rows, targets: p(rows) * 0 + p(rows).sum(), scope="sequence"),
        "a weight depends on other sequences, and `scope` is `sequence`",
    ),
    "a value that looks at others": (
        objective(lambda rows, targets: Weighed(p(rows), p(rows).sum() + 0 * p(rows))),
        "a weight depends on other tokens",
    ),
    "no number": (
        objective(lambda rows, targets: p(rows) * float("nan")),
        "weights must be finite",
    ),
    "infinite where a token is certain": (
        objective(lambda rows, targets: 1 / rows.one_minus_p_T),
        r"weights must be finite \(a token of log p -?0\)",
    ),
    "infinite where the model has masked a token out": (
        objective(lambda rows, targets: 1 - rows.logp_T),
        r"weights must be finite \(a token of log p -inf\)",
    ),
    "below zero": (
        objective(lambda rows, targets: p(rows) - 0.5),
        "weights below 0 unlearn; allowed only with `may_be_negative`",
    ),
    "below zero, and divided by their sum": (
        objective(lambda rows, targets: p(rows) - 0.5, may_be_negative=True, divisor="weights"),
        "weights below 0 cannot be divided by their sum",
    ),
    "an infinite value": (
        objective(lambda rows, targets: Weighed(p(rows), 1 / rows.one_minus_p_T)),
        "values must be finite",
    ),
    "a value declared but not returned": (
        objective(lambda rows, targets: Weighed(p(rows)), statistics=("share",)),
        "declared in `statistics`, and not returned: share",
    ),
    "a value returned but not declared": (
        objective(lambda rows, targets: Weighed(p(rows), statistics={"share": p(rows)})),
        "returned, and not declared in `statistics`: share",
    ),
    "a value of another shape": (
        objective(lambda rows, targets: Weighed(p(rows), statistics={"share": p(rows).sum()}), statistics=("share",)),
        r"the statistic share has shape \(\), not \[T\]",
    ),
    "a graph": (
        objective(lambda rows, targets: p(rows) * PARAMETER),
        "weights must be detached: no gradient flows through them",
    ),
    "a truth value": (
        objective(lambda rows, targets: rows.is_top1_T),
        "weights have dtype torch.bool; that of rows.logp_T is torch.float32",
    ),
    "a dtype of its own": (
        objective(lambda rows, targets: p(rows).float()),
        "weights have dtype torch.float32; that of rows.logp_T is torch.float64",
    ),
    "one weight for all": (
        objective(lambda rows, targets: p(rows).mean()),
        r"weights have shape \(\); one for each token is \[72\]",
    ),
    "a number": (objective(lambda rows, targets: 1.0), "it returned a float; w_T is a tensor"),
    "what it was given": (objective(in_place), "it changes the rows or targets that it is given"),
    "chance": (objective(once_more), "it gives the same tokens other weights when asked again"),
    "an error": (objective(lambda rows, targets: 1 / 0), "weighing 72 tokens failed with ZeroDivisionError"),
    "no tokens at all": (
        objective(lambda rows, targets: p(rows) / p(rows).max(), scope="batch"),
        "weighing 0 tokens failed with RuntimeError",
    ),
    "an unknown scope": (objective(lambda rows, targets: p(rows), scope="row"), "scope is 'row'; allowed: token, seq"),
    "an unknown divisor": (
        objective(lambda rows, targets: p(rows), divisor="sum"),
        "divisor is 'sum'; allowed: tokens, weights, kept",
    ),
    "an unknown statistic": (
        objective(lambda rows, targets: p(rows), needs=frozenset({"entropi"})),
        "needs names 'entropi'; allowed:",
    ),
    "no summary": (objective(lambda rows, targets: p(rows), summary=""), "has no summary"),
    "the name of a setting": (objective(lambda rows, targets: p(rows), name="describe"), "'describe' is a setting"),
    "a statistic of ours": (
        objective(lambda rows, targets: Weighed(p(rows), statistics={"loss": p(rows)}), statistics=("loss",)),
        "the statistic loss would be logged as `dft/loss`, as one of ours",
    ),
    "in the place of nothing": (
        objective(lambda rows, targets: p(rows), replaces_target=True),
        "`replaces_target` is True, and `reference` is not `distribution`",
    ),
    "no effect on no option": (
        objective(lambda rows, targets: p(rows), without_effect={"power": ("by", ("x",))}),
        "`without_effect` names by, power, which is no option",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_it_names_what_is_wrong(what):
    wrong, says = WRONG[what]
    with pytest.raises(AssertionError, match=says):
        check_objective(wrong)


RIGHT = {
    "weights of zero": objective(lambda rows, targets: 0 * p(rows)),
    "weights below zero that are declared": objective(lambda rows, targets: p(rows) - 0.5, may_be_negative=True),
    "a scope that is declared": objective(lambda rows, targets: mean_of_sequences(p(rows), targets), scope="sequence"),
    "a batch": objective(lambda rows, targets: p(rows) * 0 + p(rows).sum(), scope="batch"),
    "a position": objective(lambda rows, targets: p(rows) / (1 + targets.position_T), places=True),
    "a function of rows": objective(outsider, needs=frozenset({Rank()})),
    "a column": objective(lambda rows, targets: targets.columns["ratio"].to(p(rows)), columns=frozenset({"ratio"})),
    "a statistic that some tokens do not have": objective(
        lambda rows, targets: Weighed(p(rows), statistics={"top": p(rows).where(rows.is_top1_T, p(rows) * torch.nan)}),
        statistics=("top",),
    ),
}


@pytest.mark.parametrize("what", RIGHT)
def test_it_accepts_what_is_declared(what):
    check_objective(RIGHT[what])


def test_a_column_may_be_tried_for_and_not_be_there():
    def optional(rows, targets):
        try:
            return targets.columns["ratio"].to(p(rows))
        except KeyError:
            return p(rows)

    check_objective(objective(optional))


class Clocked(Plain):
    """Cannot do without a clock."""

    def weigh(self, rows, targets, clock):
        if clock is None:
            raise ClockError("no clock")
        return p(rows) ** (clock.step / clock.last_step)


def test_an_objective_that_says_that_it_needs_a_clock_gets_one():
    check_objective(Clocked)


class WithoutDefault(Plain):
    """Has an option that must be given."""

    ids: tuple[int, ...] = Field(description="Ids.")


def test_an_option_without_a_default_is_asked_for():
    with pytest.raises(AssertionError, match="the option ids has no default; check an object of WithoutDefault"):
        check_objective(WithoutDefault)
    check_objective(WithoutDefault(ids=(1,)))


class Undescribed(Plain):
    """Has an option of which nothing is said."""

    factor: Number = 1.0


class Shadowing(Plain):
    """Has an option that is a setting."""

    kernel: str = Field("chunked", description="Mine.")


class Logged(Plain):
    """Has an option that would be logged as a statistic of ours."""

    nll: float = Field(1.0, description="Mine.")


class Empty(Objective):
    """Weighs nothing."""

    name: ClassVar[str] = "empty"
    summary: ClassVar[str] = "none"
    source: ClassVar[str] = "none"


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Undescribed, "option factor has no description"),
        (Shadowing, "option kernel is a setting of ours"),
        (Logged, "the option nll would be logged as `dft/nll`, as one of ours"),
        (Empty, "Empty defines neither `weight` nor `weigh`"),
    ],
)
def test_a_class_is_described_and_does_something(kind, says):
    with pytest.raises(AssertionError, match=says):
        check_objective(kind)


def test_it_says_no_where_python_takes_assertions_out():
    code = "from dft_plugin.testing import check_objective\n"
    code += "from dft_plugin.objectives import DFT\nDFT.source = ''\ncheck_objective(DFT)"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, check=False)
    assert "AssertionError: DFT has no source" in done.stderr
