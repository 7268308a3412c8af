"""The cells of the grid: what the model knows beforehand, and what it is shown. Chosen so that a claim may break."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evidence.demonstrations import Demonstrations
from evidence.prior import Prior
from evidence.tasks import NEW_TOKENS, UNSEEN

FULL = Prior(steps=1600)
HALF = Prior(steps=400)
BARELY = Prior(steps=120)
RARE = replace(FULL, unseen_style=0.02)
ENDLESS = replace(FULL, ends=False)

TUNED = 0.4
"""The share of wrong demonstrations at which a group's rates are chosen."""


@dataclass(frozen=True)
class Cell:
    """A place in the grid.

    Attributes:
        group: cells that share their learning rates.
        prior: what is known.
        demonstrations: what is shown.
        telling: whether more is measured here, and all of the family.
    """

    group: str
    prior: Prior
    demonstrations: Demonstrations
    telling: bool = False

    @property
    def name(self) -> str:
        """What it is called in rows and tables."""
        shown = self.demonstrations
        parts = [self.group, f"{shown.wrong:.0%} wrong"]
        parts += ["the same mistake"] if shown.mistake == "same" else []
        parts += [f"{shown.rows} rows"] if shown.rows != Demonstrations.rows else []
        return ", ".join(parts)

    @property
    def plain(self) -> bool:
        """Whether it is one of the two that each group has."""
        shown = self.demonstrations
        usual = (shown.mistake, shown.rows) == ("any", Demonstrations.rows)
        return usual and shown.wrong in (0.0, TUNED)

    @property
    def tuned_here(self) -> bool:
        """Whether the rates of its group are chosen at it."""
        return self.plain and self.demonstrations.wrong == TUNED


def _cells(group: str, prior: Prior, shown: Demonstrations, shares: tuple[float, ...]) -> list[Cell]:
    return [Cell(group, prior, replace(shown, wrong=share), _telling(group, share)) for share in shares]


def _telling(group: str, share: float) -> bool:
    return (group, share) in {("task and style known", 0.4), ("style unseen", 0.4), ("new facts", 0.4)}


def _changed(cells: list[Cell], **dials: object) -> list[Cell]:
    return [replace(cell, telling=False, demonstrations=replace(cell.demonstrations, **dials)) for cell in cells]


def cells() -> tuple[Cell, ...]:
    """Return all cells, in the order of the groups."""
    every, two = (0.0, 0.2, 0.4, 0.6), (0.0, 0.4)
    unseen = Demonstrations(style=UNSEEN)
    known = _cells("task and style known", FULL, Demonstrations(), every)
    strange = _cells("style unseen", FULL, unseen, every)
    return (
        *known,
        *_changed(known[2:], mistake="same"),
        *strange,
        *_changed(strange[2:], mistake="same"),
        *_changed([strange[0], strange[2]], rows=200),
        *_cells("facts contradicted", FULL, Demonstrations("facts contradicted"), two),
        *_cells("new facts", FULL, Demonstrations("new facts"), (0.0, 0.4, 0.6)),
        *_cells("half of the facts new", FULL, Demonstrations("half of the facts new"), two),
        *_cells("new tokens", FULL, Demonstrations(style=NEW_TOKENS), two),
        *_cells("half learned, style unseen", HALF, unseen, every),
        *_cells("half learned, style known", HALF, Demonstrations(), every),
        *_cells("barely learned, style known", BARELY, Demonstrations(), two),
        *_cells("answers never ended", ENDLESS, Demonstrations(), two),
        *_cells("style rarely seen", RARE, unseen, two),
    )
