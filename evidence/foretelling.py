"""Which of SFT and DFT will be better, from what is known before training: two rules, held against the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean

from evidence.losses import BASE
from evidence.study import MARGIN, Study, accuracy
from evidence.tables import TOOK, markdown, percent

SFT, DFT, EITHER = "SFT", "DFT", "either"

Rule = Callable[[Study, str], "str | None"]
"""Of a study and the name of a cell: which it takes; None where its number was not measured."""

RARE = 0.01
"""Share of questions below which the model does not give the demonstrated answers itself."""

SEEN = 1
"""The seed that had been seen when the second rule was written down."""


def by_probability(study: Study, cell: str) -> str | None:
    """Return what arXiv 2510.00526 takes, by the mean probability of the demonstrated tokens."""
    prior = study.prior(cell)
    if prior is None:
        return None
    if prior > 0.5:
        return DFT
    return SFT if prior < 0.1 else EITHER


def own_answers(study: Study, cell: str) -> float | None:
    """Return the share of questions that the base, sampled at temperature 1, answers as it would be shown."""
    found = [row["accuracy"]["form@1"] for row in study.by_seed(cell, BASE).values()]
    return mean(found) if found else None


def by_own_answers(study: Study, cell: str) -> str | None:
    """Return SFT where the model hardly ever gives the demonstrated answers itself, else DFT."""
    share = own_answers(study, cell)
    if share is None:
        return None
    return SFT if share < RARE else DFT


def unseen(study: Study) -> Study:
    """Return the study without the seed that had been seen."""
    return replace(study, grid=replace(study.grid, seeds=tuple(seed for seed in study.grid.seeds if seed != SEEN)))


@dataclass
class Count:
    """How a rule fares.

    Attributes:
        right: cells in which it takes the better one.
        wrong: those in which it takes the worse one, with DFT minus SFT.
        even: cells in which the two are within half a point.
        between: whether they are further apart, for each cell in which it takes neither.
    """

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    even: int = 0
    between: list[bool] = field(default_factory=list)

    @property
    def taken(self) -> int:
        """In how many cells it takes one, and it matters."""
        return self.right + len(self.wrong)


def decided(study: Study, rules: Sequence[Rule]) -> list[str]:
    """Return the cells in which each of some rules takes SFT or DFT."""
    return [cell for cell in study.cells() if all(rule(study, cell) in (SFT, DFT) for rule in rules)]


def count(study: Study, rule: Rule, name: str, cells: Sequence[str] | None = None) -> Count:
    """Return how a rule fares by an accuracy, in some cells or all."""
    found = Count()
    for cell in study.cells() if cells is None else cells:
        taken, apart = rule(study, cell), study.difference(cell, DFT, SFT, accuracy(name))
        if taken is None or apart is None:
            continue
        if taken == EITHER:
            found.between.append(abs(apart.mean) > MARGIN)
        elif abs(apart.mean) <= MARGIN:
            found.even += 1
        elif (apart.mean > 0) == (taken == DFT):
            found.right += 1
        else:
            found.wrong.append(f"{cell} ({percent(apart, '+')})")
    return found


def fares(study: Study, rule: Rule) -> str:
    """Return how often a rule takes the better one, and where it takes the worse one."""
    return "\n".join(f"- *{took}*: {_said(count(study, rule, name))}" for took, name in TOOK.items())


def _said(found: Count) -> str:
    if not (found.taken or found.even or found.between):
        return "no cell yet."
    named = f": {'; '.join(found.wrong)}" if found.wrong else ""
    said = f"it takes the better one in {found.right} cells and the worse one in {len(found.wrong)}{named}."
    said += f" In {found.even} they are within half a point."
    if found.between:
        apart = f"{sum(found.between)} of {len(found.between)} cells"
        said += f" Where it takes neither they are further apart than that in {apart}."
    return said


def supposed(study: Study) -> str:
    """Return how the three suppositions of README.md fare, by the seeds that decide; nothing for no cell."""
    left = unseen(study)
    cells, lines = decided(left, (by_probability, by_own_answers)), []
    for took, name in TOOK.items():
        own, prob = (count(left, rule, name, cells) for rule in (by_own_answers, by_probability))
        weak = [cell for cell in left.cells() if by_own_answers(left, cell) == SFT and _learned(left, cell, name)]
        apart = [left.difference(cell, DFT, SFT, accuracy(name)) for cell in weak]
        behind = [one.mean < -MARGIN for one in apart if one]
        if own.taken:
            said = f"own answers take the worse one in {len(own.wrong)}, the mean probability in {len(prob.wrong)}"
            lines.append(f"- *{took}*, of {own.taken} cells in which both take one and it matters: {said}")
        if behind:
            said = f"DFT is behind in {sum(behind)} of {len(behind)} cells with fewer than 1 % own answers"
            lines.append(f"- *{took}*: {said}, where SFT learns anything")
        for cell in (cell for cell in left.cells() if cell.startswith("half of the facts new")):
            found = left.difference(cell, DFT, SFT, accuracy(name))
            if found:
                lines.append(f"- *{took}, {cell}*: the rule takes {by_own_answers(left, cell)}, {percent(found, '+')}")
    return "\n".join(lines)


def _learned(study: Study, cell: str, name: str) -> bool:
    found = study.estimate(cell, SFT, accuracy(name))
    return bool(found and found.mean >= RARE)


def table(study: Study) -> str:
    """Return what is known of each cell beforehand, what both rules take, and DFT minus SFT."""
    lines = []
    for cell in study.cells():
        prior, found = study.prior(cell), study.difference(cell, DFT, SFT, accuracy(TOOK["greedy"]))
        if prior is None or found is None:
            continue
        sampled = study.difference(cell, DFT, SFT, accuracy(TOOK["sampled at temperature 1"]))
        share = own_answers(study, cell)
        own = "" if share is None else f"{100 * share:.1f}"
        taken = [by_probability(study, cell) or "", own, by_own_answers(study, cell) or ""]
        lines.append((prior, [cell, f"{prior:.2f}", *taken, percent(found, "+"), percent(sampled, "+")]))
    head = ["cell", "mean p before", "mean p says", "own answers, %", "own answers say"]
    head += ["DFT minus SFT, greedy", "DFT minus SFT, sampled"]
    return markdown(head, [line for _, line in sorted(lines, key=lambda pair: pair[0])])
