"""What the rows say to each question, in a sentence: counted, never written by hand."""

from __future__ import annotations

from collections import Counter

from evidence.losses import ENDS
from evidence.study import MARGIN, Study, accuracy
from evidence.tables import TOOK, percent

LONGER = {"longer problems, greedy": "longer@0", "longer problems, sampled at temperature 1": "longer@1"}
"""Sums of one digit more than those that were shown."""


def hypothesis(study: Study, loss: str = "alpha 0.5") -> str:
    """Return how the main hypothesis fares, or the same one about another loss."""
    lines = []
    for took, name in {**TOOK, **LONGER}.items():
        found = {cell: study.verdict(cell, accuracy(name), loss) for cell in study.cells(name)}
        verdicts = {cell: verdict for cell, verdict in found.items() if verdict}
        words = Counter(verdict.word for verdict in verdicts.values())
        counted = ", ".join(f"{word} in {count}" for word, count in words.most_common())
        lines.append(f"- *{took}*, {len(verdicts)} cells: {counted or 'no cell yet'}.{_worst(verdicts)}")
    return "\n".join(lines)


def _worst(verdicts: dict) -> str:
    behind = sorted(
        ((verdict.difference.mean, cell) for cell, verdict in verdicts.items() if verdict.difference.mean < -MARGIN)
    )
    named = "; ".join(f"{cell} ({percent(verdicts[cell].difference, '+')})" for _, cell in behind)
    return f" Its mean is more than half a point behind in {len(behind)}: {named}." if behind else ""


def ends(study: Study) -> str:
    """Return what `always_learn` does where the end of an answer was never seen; nothing without runs."""
    lines = []
    for cell in study.cells():
        for loss in ENDS:
            found = [study.estimate(cell, one, accuracy(name)) for one in (loss, "DFT") for name in TOOK.values()]
            if all(found):
                taught, plain = (" / ".join(map(percent, found[at : at + 2])) for at in (0, 2))
                lines.append(f"- *{cell}*: {taught}, where DFT alone has {plain} (greedy / sampled)")
    return "DFT with `always_learn: [eos]`:\n\n" + "\n".join(lines) if lines else ""


def crossing(study: Study, name: str) -> str:
    """Return by share of wrong demonstrations up to which mean p DFT is behind SFT, and from which ahead."""
    lines = []
    for share in sorted({cell.demonstrations.wrong for cell in study.grid.cells}):
        ahead, behind = [], []
        for cell in (cell for cell in study.grid.cells if cell.demonstrations.wrong == share):
            prior, found = study.prior(cell.name), study.difference(cell.name, "DFT", "SFT", accuracy(name))
            if prior is not None and found is not None and abs(found.mean) > MARGIN:
                (ahead if found.mean > 0 else behind).append(prior)
        if ahead or behind:
            said = [f"behind up to {max(behind):.2f}"] if behind else ["behind nowhere"]
            said += [f"ahead from {min(ahead):.2f}"] if ahead else ["ahead nowhere"]
            lines.append(f"- *{share:.0%} wrong*: DFT is {' and '.join(said)} (cells: {len(behind)} and {len(ahead)})")
    return "\n".join(lines)


def temperature(study: Study) -> str:
    """Return in how many cells SFT sampled colder reaches DFT at temperature 1."""
    lines = []
    for heat in ("0.7", "0.3", "0"):
        reached, gains = 0, 0
        for cell in (cell for cell in study.cells() if _gains(study, cell)):
            gains += 1
            cold, warm = (
                study.estimate(cell, "SFT", accuracy(f"taught@{heat}")),
                study.estimate(cell, "DFT", accuracy("taught@1")),
            )
            reached += bool(cold and warm and cold.mean >= warm.mean - MARGIN)
        how = "greedy" if heat == "0" else f"sampled at {heat}"
        lines.append(f"- SFT {how} is within half a point of DFT at 1, or above it, in {reached} of {gains}.")
    return "\n".join(lines)


def _gains(study: Study, cell: str) -> bool:
    found = study.difference(cell, "DFT", "SFT", accuracy("taught@1"))
    return bool(found and found.mean > MARGIN)


def so_far(study: Study) -> str:
    """Return how much of the study there is."""
    counted = study.counted()
    made = sum(pair[0] for pair in counted.values())
    planned = sum(pair[1] for pair in counted.values())
    parts = ", ".join(f"{part} {pair[0]} of {pair[1]}" for part, pair in counted.items())
    missing = study.grid.pending(study.rows)
    if not missing:
        return f"All of its {made} runs are there ({parts})."
    return (
        f"**So far {made} of {planned} runs** ({parts}; a rate at an end of those tried adds one). "
        "A number without ± is of one seed. What is missing may change what is said here."
    )
