"""The tables of the page, from the rows, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import mean

from evidence import rates
from evidence.losses import BASE
from evidence.real.grid import LOSSES, PART, PROBED
from evidence.rows import Row
from evidence.study import Estimate, Study, accuracy

NOTHING = "No run of this is there yet."

TOOK = {"greedy": "taught@0", "sampled at temperature 1": "taught@1"}


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; a sentence where it has no rows."""
    if not rows:
        return NOTHING
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(found: Estimate | None, sign: str = "") -> str:
    """Return a mean and half of its interval in points; nothing for no runs, no interval for one."""
    if found is None:
        return ""
    middle = f"{100 * found.mean:{sign}.1f}"
    return middle if math.isinf(found.half) else f"{middle} ± {100 * found.half:.1f}"


def hypothesis(study: Study, name: str) -> str:
    """Return accuracies of the losses of the full grid in each cell, and what the cell says of alpha 0.5."""
    measure, losses = accuracy(name), [*study.grid.core]
    lines = []
    for cell in study.cells():
        verdict, prior = study.verdict(cell, measure), study.prior(cell)
        shown = [percent(study.estimate(cell, loss, measure)) for loss in (BASE, *losses)]
        said = [percent(verdict.difference, "+"), verdict.word] if verdict else ["", ""]
        lines.append([cell, "" if prior is None else f"{prior:.2f}", *shown, *said])
    head = [
        "cell",
        "mean p before",
        "before training",
        *losses,
        "alpha 0.5 minus the better of SFT and DFT",
        "verdict",
    ]
    return markdown(head, lines)


def temperature(study: Study) -> str:
    """Return SFT at each temperature beside DFT at 1, in the cells of sums."""
    lines = []
    for cell in (cell for cell in study.grid.cells if cell.demonstrations.kind == "sums" and cell.plain):
        heats = [study.estimate(cell.name, "SFT", accuracy(f"taught@{heat}")) for heat in ("0", "0.3", "0.7", "1")]
        others = [study.estimate(cell.name, loss, accuracy("taught@1")) for loss in ("DFT", "alpha 0.5")]
        if any(heats):
            lines.append([cell.name, *(percent(one) for one in (*heats, *others))])
    return markdown(
        ["cell", "SFT greedy", "SFT at 0.3", "SFT at 0.7", "SFT at 1", "DFT at 1", "alpha 0.5 at 1"], lines
    )


_BESIDES: Sequence[tuple[str, Callable[[Row], float | None]]] = (
    ("longer sums, greedy", lambda row: row["accuracy"].get("longer@0")),
    ("letters reversed", lambda row: row["accuracy"].get("reverse@0")),
    ("digits sorted", lambda row: row["accuracy"].get("sort@0")),
    ("facts known", lambda row: row["accuracy"].get("facts@0")),
    ("answers in the form shown", lambda row: row["accuracy"]["form@0"]),
    ("calibration error of right answers", lambda row: row["right"]["ece"]),
    ("entropy on them, nats", lambda row: row["right"]["entropy"]),
    ("probability of their end", lambda row: row["right"]["end_prob"]),
    ("distance to the base", lambda row: row["distance"]),
)


def besides(study: Study, cell: str) -> str:
    """Return what else a loss changed in a cell."""
    losses = [BASE, *(loss for loss in study.grid.core if study.by_seed(cell, loss))]
    lines = []
    for title, measure in _BESIDES:
        means = []
        for loss in losses:
            values = [measure(row) for row in study.by_seed(cell, loss).values()]
            known = [value for value in values if value is not None]
            means.append(f"{mean(known):.3f}" if known else "")
        if any(means):
            lines.append([title, *means])
    return markdown(["", *losses], lines)


def family(study: Study) -> str:
    """Return all losses at the telling points: greedy, and sampled at temperature 1."""
    cells = [cell.name for cell in study.grid.cells if cell.telling and cell.name in study.cells()]
    names = dict.fromkeys(loss for cell in cells for loss in study.losses(cell) if loss != BASE)
    lines = []
    for loss in names:
        line = [loss]
        for cell in cells:
            pair = [percent(study.estimate(cell, loss, accuracy(name))) for name in TOOK.values()]
            line.append(" / ".join(pair) if all(pair) else "")
        lines.append(line)
    return markdown(["loss", *cells], lines)


def chosen_rates(study: Study) -> str:
    """Return the learning rate of each loss in each group; nothing where it is not chosen yet."""
    groups = dict.fromkeys(cell.group for cell in study.grid.cells)
    lines = []
    for loss in (*study.grid.core, *study.grid.family):
        tried = [study.grid.tried(group, loss, study.rows) for group in groups]
        rate = [rates.chosen(one, study.grid.rates) if one else None for one in tried]
        if any(rate):
            lines.append([loss, *(f"{one:g}" if one else "" for one in rate)])
    return markdown(["loss", *groups], lines)


def tried(study: Study, group: str) -> str:
    """Return what each rate that was tried in a group led to: the runs that chose."""
    lines = []
    for loss in study.grid.core:
        for rate, row in sorted(study.grid.rows_of(group, loss, study.rows).items()):
            took = row["accuracy"]
            shown = [took.get(name) for name in ("taught@0", "taught@1", "longer@0", "reverse@0", "sort@0")]
            numbers = ["" if one is None else f"{100 * one:.1f}" for one in shown]
            lines.append([loss, f"{rate:g}", *numbers, f"{row['distance']:.3f}"])
    head = ["loss", "rate", "greedy", "sampled", "longer sums", "letters reversed", "digits sorted", "distance"]
    return markdown(head, lines)


def real(study: Study) -> str:
    """Return what the losses led to on a real model: greedy / sampled at temperature 1; a sentence for no runs."""
    rows = [row for row in study.rows.values() if row["part"] == PART]
    found = {row["cell"]: row["found"] for row in study.rows.values() if row["part"] == PROBED}
    losses, lines = (BASE, *LOSSES), []
    for cell in dict.fromkeys(row["cell"] for row in rows):
        here = [row for row in rows if row["cell"] == cell]
        # All of the model is trained on what an adapter is.
        known = found.get(cell.replace(", full", ", LoRA"))
        line = [cell, f"{known['mean_prob']:.2f}", f"{100 * known['own_answers']:.1f}"] if known else [cell, "", ""]
        for loss in losses:
            right = [row["accuracy"] for row in here if row["loss"] == loss]
            pair = [percent(Estimate.of(one[name] for one in right)) for name in TOOK.values()]
            line.append(" / ".join(pair) if all(pair) else "")
        lines.append(line)
    return markdown(["cell", "mean p before", "own answers, %", "before training", *losses[1:]], lines)
