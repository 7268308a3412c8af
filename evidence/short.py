"""What the study says, in a few lines: each is counted from the rows, and left out without them."""

from __future__ import annotations

from statistics import mean

from evidence import foretelling
from evidence.following import behind
from evidence.offline.grid import CELLS
from evidence.offline.report import sampled
from evidence.study import MARGIN, Study, accuracy
from evidence.tables import TOOK, percent


def in_short(study: Study) -> str:
    """Return the lines."""
    lines = [_dft_and_sft(study), _alpha(study), _always(study), _foretold(study), _colder(study), _own_answers(study)]
    return "\n".join(f"- {line}" for line in lines if line)


def _dft_and_sft(study: Study) -> str:
    said = []
    for took, name in TOOK.items():
        found = [study.difference(cell, "DFT", "SFT", accuracy(name)) for cell in study.cells()]
        apart = [one.mean for one in found if one]
        ahead, back = sum(one > MARGIN for one in apart), sum(one < -MARGIN for one in apart)
        if apart:
            said.append(f"{took}, it is ahead of SFT in {ahead} of {len(apart)} cells and behind in {back}")
    return f"**DFT**: {'; '.join(said)} (by more than half a point)." if said else ""


def _alpha(study: Study) -> str:
    said = []
    for took, name in TOOK.items():
        found = [study.verdict(cell, accuracy(name)) for cell in study.cells()]
        apart = [one.difference.mean for one in found if one]
        if apart:
            back, ahead = sum(one < -MARGIN for one in apart), sum(one > MARGIN for one in apart)
            worst = f", by {-100 * min(apart):.0f} at most" if back else ""
            best = f", by {100 * max(apart):.0f} at most" if ahead else ""
            said.append(f"{took}, behind in {back} of {len(apart)} cells{worst}, and ahead in {ahead}{best}")
    return f"**Alpha 0.5**, beside the better of SFT and DFT: {'; '.join(said)}." if said else ""


def _always(study: Study) -> str:
    said = []
    for took, name in TOOK.items():
        means = {}
        for loss in study.grid.core:
            by_cell = [list(found.values()) for cell in study.cells() if (found := behind(study, cell, name, loss))]
            if by_cell:
                means[loss] = 100 * mean(map(mean, by_cell))
        if means:
            order = sorted(means, key=lambda loss: means[loss])
            said.append(f"{took}: {', '.join(f'{loss} {means[loss]:.0f}' for loss in order)}")
    costs = "**Always the same loss** costs on average, in points behind the best one of each cell"
    return f"{costs}, {'; '.join(said)}." if said else ""


def _foretold(study: Study) -> str:
    rules = {
        "mean probability": foretelling.by_probability,
        "own answers (a rule made from seed 1)": foretelling.by_own_answers,
        "no look at all, always SFT": lambda study, cell: foretelling.SFT,
    }
    cells = foretelling.decided(study, [*rules.values()])
    name = TOOK["sampled at temperature 1"]
    found = {what: foretelling.count(study, rule, name, cells) for what, rule in rules.items()}
    said = [f"by {what} wrong in {len(one.wrong)} of {one.taken} cells" for what, one in found.items() if one.taken]
    return f"**SFT or DFT**, told before training, sampled: {'; '.join(said)}." if said else ""


def _colder(study: Study) -> str:
    gains, reached = 0, 0
    for cell in study.cells():
        found = study.difference(cell, "DFT", "SFT", accuracy("taught@1"))
        cold = study.estimate(cell, "SFT", accuracy("taught@0.3"))
        warm = study.estimate(cell, "DFT", accuracy("taught@1"))
        if found and cold and warm and found.mean > MARGIN:
            gains += 1
            reached += cold.mean >= warm.mean - MARGIN
    said = f"SFT sampled at 0.3 equals DFT at 1 in {reached} of the {gains} cells where DFT is ahead at 1."
    return f"**A lower temperature**: {said}" if gains else ""


def _own_answers(study: Study) -> str:
    found = sampled(study.rows, CELLS[0].name, ("RFT", "DFT", "GRPO", "DPO"))
    said = ", ".join(f"{method} {percent(share)}" for method, share in found.items())
    return f"**Trained on answers of its own**, well learned, sampled: {said}." if found else ""
