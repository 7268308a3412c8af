"""`check_objective` looks at what an objective makes of rows of logits, and of a reference's."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from support.made import Plain, objective, p

from dft_plugin.objectives import Rank, Top, Weighed
from dft_plugin.testing import check_objective


@dataclass(frozen=True)
class Mean(Top):
    """Wrong where it is made from blocks of different sizes, or of a row's neighbours."""

    over_rows: bool = False

    def __call__(self, logits_CV, targets_C):
        made_C = logits_CV.clamp(min=-99).mean(1)
        return made_C - made_C.mean() if self.over_rows else made_C

    def combine(self, parts_PC):
        return parts_PC.sum(0)


@dataclass(frozen=True)
class Shifting(Rank):
    """Changes what it is given."""

    def __call__(self, logits_CV, targets_C):
        return logits_CV.sub_(1).amax(1)


class Fresh:
    """Equal to nothing."""

    name = "fresh"

    def __call__(self, logits_CV, targets_C):
        return logits_CV.amax(1)


class FreshEachTime(Plain):
    """Makes its functions anew."""

    @property
    def needs(self):
        return frozenset({Fresh()})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (objective(lambda rows, targets: p(rows), needs=frozenset({Mean(1)})), "`combine` of the statistic top1 does"),
        (objective(lambda rows, targets: p(rows), needs=frozenset({Mean(1, True)})), "top1 depends on other rows"),
        (objective(lambda rows, targets: p(rows), needs=frozenset({Shifting()})), "rank changes the logits"),
        (FreshEachTime(), "functions that do not equal each other"),
    ],
    ids=["combine", "rows", "in place", "equality"],
)
def test_a_function_of_rows_is_checked(wrong, says):
    with pytest.raises(AssertionError, match=says):
        check_objective(wrong)


def less_the_mean(self, reference_CV, ids_C):
    return reference_CV - reference_CV.mean(0)


def one_column(self, reference_CV, ids_C):
    return reference_CV[:, :1]


def pull_by_all(rows, targets):
    return Weighed(p(rows), soft_T=0 * p(rows) + p(rows).sum())


SOFT = {
    "soft targets without a reference": (
        objective(lambda rows, targets: Weighed(p(rows), soft_T=p(rows))),
        "it returned soft_T, and `reference` is not `distribution`",
    ),
    "a pull of another shape": (
        objective(lambda rows, targets: Weighed(p(rows), soft_T=p(rows).sum()), reference="distribution"),
        r"soft_T have shape \(\); one for each token is \[72\]",
    ),
    "a pull that looks at others": (
        objective(
            lambda rows, targets: Weighed(p(rows), soft_T=0 * p(rows) + p(rows).sum()), reference="distribution"
        ),
        "a weight depends on other tokens",
    ),
    "soft targets of the batch": (
        objective(
            lambda rows, targets: p(rows), reference="distribution", soft_targets=lambda self, r, ids: r - r.mean(0)
        ),
        "`soft_targets` of a token depend on other tokens",
    ),
    "soft targets of another shape": (
        objective(lambda rows, targets: p(rows), reference="distribution", soft_targets=one_column),
        r"`soft_targets` gives shape \(72, 1\), not \[C, V\]",
    ),
    "a reference's distribution for a sequence": (
        objective(lambda rows, targets: p(rows), reference="distribution", scope="sequence"),
        "with a reference's distribution, `scope` is `token`",
    ),
    "an unknown reference": (
        objective(lambda rows, targets: p(rows), reference="logits"),
        "reference is 'logits'; allowed: none, columns, distribution",
    ),
}


@pytest.mark.parametrize("what", SOFT)
def test_soft_targets_are_checked(what):
    wrong, says = SOFT[what]
    with pytest.raises(AssertionError, match=says):
        check_objective(wrong)
