"""What one gains by doing as `dft probe` advises, beside always taking the same loss."""

from __future__ import annotations

from statistics import mean

from dft_plugin.config.advice import advise
from evidence.probed import findings
from evidence.study import Study, accuracy
from evidence.tables import TOOK, markdown

CALLED = {
    "nll": "SFT",
    "dft": "DFT",
    "{name: dft, alpha: 0.5}": "alpha 0.5",
    "{name: dft, floor: 0.1}": "floor 0.1",
    "eaft": "EAFT",
    "{name: dft, always_learn: [eos]}": "DFT, end learned",
}
"""Losses of the study by what the advice has after `loss:`."""


def advised(study: Study, cell: str) -> dict[int, str]:
    """Return by seed what `dft probe` advises in a cell, as it is written after `loss:`."""
    found = findings(study.rows, cell)
    return {seed: advise(found[seed])[0].what for seed in sorted(found) if seed in study.grid.seeds}


def behind(study: Study, cell: str, name: str, loss: str) -> dict[int, float]:
    """Return by seed how far a loss is behind the best of the full grid in a cell, where all of these have a run.

    Args:
        study: the rows.
        cell: its name.
        name: of the accuracy.
        loss: of the study.
    """
    measure, own = accuracy(name), study.by_seed(cell, loss)
    core = [study.by_seed(cell, one) for one in study.grid.core]
    seeds = [seed for seed in own if all(seed in one for one in core)]
    return {seed: max(measure(one[seed]) for one in core) - measure(own[seed]) for seed in seeds}


def lost(study: Study, cell: str, name: str, loss: str | None = None) -> list[float]:
    """Return how far behind one is by the advice, or by a loss where there is advice: one entry for each such seed."""
    taken = {seed: loss or CALLED.get(what, "") for seed, what in advised(study, cell).items()}
    found = {one: behind(study, cell, name, one) for one in {*taken.values()}}
    return [found[one][seed] for seed, one in taken.items() if seed in found[one]]


def table(study: Study) -> str:
    """Return by what is always taken, and by the advice, how much is lost on average and at worst."""
    lines = []
    for title, loss in (("as advised", None), *((f"always {one}", one) for one in study.grid.core)):
        line, count = [title], 0
        for name in TOOK.values():
            by_cell = [found for cell in study.cells() if (found := lost(study, cell, name, loss))]
            worst = max((mean(found) for found in by_cell), default=0.0)
            line += [f"{100 * mean(map(mean, by_cell)):.1f}", f"{100 * worst:.1f}"] if by_cell else ["", ""]
            count = len(by_cell)
        lines.append([*line, str(count)])
    head = ["loss"]
    for took in TOOK:
        head += [f"{took}: lost on average", "in the worst cell"]
    return markdown([*head, "cells"], lines if any(line[1] for line in lines) else [])


def by_cell(study: Study) -> str:
    """Return what is found and advised in each cell, and what is lost by it."""
    lines = []
    for cell in study.cells():
        found = findings(study.rows, cell)
        said = list(dict.fromkeys(advised(study, cell).values()))
        if not said:
            continue
        names = ("mean_prob", "own_answers", "conflict_share", "unknown_share")
        means = [mean(one[name] for one in found.values()) for name in names]
        behind = [lost(study, cell, name) for name in TOOK.values()]
        shown = ["" if not one else f"{100 * mean(one):.1f}" for one in behind]
        numbers = [f"{means[0]:.2f}", f"{100 * means[1]:.1f}", f"{100 * means[2]:.0f}", f"{100 * means[3]:.0f}"]
        lines.append([cell, *numbers, " or ".join(f"`{one}`" for one in said), *shown])
    head = [
        "cell",
        "mean p",
        "p of a whole answer, %",
        "conflicts, %",
        "unknown, %",
        "advised",
        "lost, greedy",
        "lost, sampled",
    ]
    return markdown(head, lines)
