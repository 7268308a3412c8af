"""The pictures of the page, from the rows; None where the rows for one are not there yet."""

from __future__ import annotations

from itertools import pairwise
from statistics import mean

from dft_plugin.core.bands import EDGES
from evidence.drawing import Axes, colour
from evidence.study import Study, accuracy

LOSSES = ("SFT", "DFT", "alpha 0.5")
PERCENT = [(share / 4, f"{share * 25}") for share in range(5)]


def beside_each_other(study: Study) -> str | None:
    """Draw accuracy at temperature 1 of SFT, DFT and alpha 0.5 where 40 % of the demonstrations are wrong."""
    cells = [cell for cell in study.grid.cells if cell.tuned_here and all(study.by_seed(cell.name, x) for x in LOSSES)]
    if not cells:
        return None
    axes = Axes((0.0, 1.0), (0.0, float(len(cells))), height=90 + 34 * len(cells), left=210)
    axes.ticks_x(PERCENT, "right answers sampled at temperature 1, in %")
    for number, cell in enumerate(cells):
        y = len(cells) - number - 0.5
        axes.ticks_y([(y, cell.group)])
        for place, loss in enumerate(LOSSES):
            found = study.estimate(cell.name, loss, accuracy("taught@1"))
            if found:
                at = (found.mean, y + 0.2 - 0.2 * place)
                axes.whisker(at, found.half, colour(place), along_x=True)
                axes.dot(at, colour(place), f"{cell.name}, {loss}: {found.mean:.1%}")
    axes.legend([(loss, colour(place)) for place, loss in enumerate(LOSSES)])
    return axes.svg("Accuracy of SFT, DFT and alpha 0.5 where 40 % of the demonstrations are wrong")


def crossing(study: Study, name: str) -> str | None:
    """Draw DFT minus SFT over the mean probability before training, a point for each cell.

    Args:
        study: the rows.
        name: of the accuracy.
    """
    axes = Axes((0.0, 1.0), (-1.0, 1.0), height=360)
    axes.ticks_x([(tick / 10, f"{tick / 10:g}") for tick in range(0, 11, 2)], "mean probability before training")
    axes.ticks_y([(tick / 2, f"{tick * 50:+d}" if tick else "0") for tick in range(-2, 3)], "DFT minus SFT, points")
    for threshold in (0.1, 0.5):
        axes.rule((threshold, -1.0), (threshold, 1.0))
    shares: dict[float, str] = {share: colour(place) for place, share in enumerate((0.0, 0.2, 0.4, 0.6))}
    drawn = 0
    for cell in study.grid.cells:
        found, prior = study.difference(cell.name, "DFT", "SFT", accuracy(name)), study.prior(cell.name)
        if found and prior is not None:
            ink = shares[cell.demonstrations.wrong]
            axes.whisker((prior, found.mean), found.half, ink)
            axes.dot((prior, found.mean), ink, f"{cell.name}: {100 * found.mean:+.1f} points")
            drawn += 1
    axes.legend([(f"{share:.0%} wrong", ink) for share, ink in shares.items()])
    return axes.svg(f"DFT minus SFT, {name}, over the mean probability before training") if drawn else None


def many_samples(study: Study, cell: str) -> str | None:
    """Draw pass@k over k."""
    curves = {}
    for loss in ("base", *LOSSES):
        rows = [row for row in study.by_seed(cell, loss).values() if "passes" in row]
        if rows:
            curves[loss] = [mean(row["passes"][key] for row in rows) for key in rows[0]["passes"]]
    if not curves:
        return None
    last = max(len(curve) for curve in curves.values()) - 1
    axes = Axes((0.0, float(max(last, 1))), (0.0, 1.0), height=300)
    axes.ticks_x([(power, f"{2**power}") for power in range(last + 1)], "k, samples at temperature 1")
    axes.ticks_y(PERCENT, "pass@k, %")
    return _curves(axes, curves, f"pass@k: {cell}")


def temperatures(study: Study, cell: str) -> str | None:
    """Draw accuracy over the temperature of sampling."""
    heats, curves = (0.0, 0.3, 0.7, 1.0), {}
    for loss in ("base", *LOSSES):
        found = [study.estimate(cell, loss, accuracy(f"taught@{heat:g}")) for heat in heats]
        if all(found):
            curves[loss] = [one.mean for one in found if one]
    if not curves:
        return None
    axes = Axes((0.0, 1.0), (0.0, 1.0), height=300)
    axes.ticks_x([(heat, f"{heat:g}") for heat in heats], "temperature")
    axes.ticks_y(PERCENT, "right, %")
    return _curves(axes, curves, f"Accuracy by temperature: {cell}", heats)


def _curves(axes: Axes, curves: dict[str, list[float]], title: str, at: tuple[float, ...] | None = None) -> str:
    inks = dict(zip(("base", *LOSSES), (colour(3), colour(0), colour(1), colour(2)), strict=True))
    for loss, values in curves.items():
        places = at or tuple(range(len(values)))
        points = list(zip(places, values, strict=True))
        axes.curve(points, inks[loss], "4 4" if loss == "base" else "")
        for place, value in points:
            axes.dot((place, value), inks[loss], f"{loss}: {value:.1%}", radius=3.5)
    axes.legend([(loss, inks[loss]) for loss in curves])
    return axes.svg(title)


def probabilities(study: Study, cell: str) -> str | None:
    """Draw which share of the demonstrated tokens is how likely, before and after."""
    curves: dict[str, list[float]] = {}
    for loss in LOSSES:
        rows = list(study.by_seed(cell, loss).values())
        for when in ("before", "after") if loss == "SFT" else ("after",):
            if rows:
                name = "before" if when == "before" else loss
                curves[name] = [
                    mean(shares) for shares in zip(*(_shares(row[when]["bands"]) for row in rows), strict=True)
                ]
    if not curves:
        return None
    axes = Axes((0.0, 1.0), (0.0, 1.0), height=300)
    axes.ticks_x([(tick / 10, f"{tick / 10:g}") for tick in range(0, 11, 2)], "probability of a demonstrated token")
    axes.ticks_y(
        [(share / 4, f"{share**2 * 100 / 16:.3g}") for share in range(5)],
        "share of the tokens in each tenth, % (a scale of roots)",
    )
    centres = [(low + high) / 2 for low, high in pairwise(_TENTHS)]
    inks = {"before": colour(3), **{loss: colour(place) for place, loss in enumerate(LOSSES)}}
    for name, shares in curves.items():
        axes.curve([(x, share**0.5) for x, share in zip(centres, shares, strict=True)], inks[name])
    axes.legend([(name, inks[name]) for name in curves])
    return axes.svg(f"Probabilities of the demonstrated tokens, before and after: {cell}")


_TENTHS = tuple(tick / 10 for tick in range(11))


def _shares(counts: list[int]) -> list[float]:
    """Return the shares in each tenth of probability."""
    tenths = [0.0] * 10
    for low, count in zip(EDGES, counts, strict=False):
        tenths[min(int(low * 10 + 1e-9), 9)] += count
    return [count / sum(counts) for count in tenths]
