"""How far two runs are apart, relative to the one that is right."""

from __future__ import annotations

import math

from reliability.matrix.cell import Trained

SQUARES = 4
"""`dft/effective_tokens` is (sum w)^2 / sum w^2: four times as far off, relatively, as a weight can be."""


def gaps(ours: Trained, theirs: Trained) -> dict[str, float]:
    """Return the largest relative difference of losses, of weights (of each tensor's largest entry) and of `dft/*`.

    Args:
        ours: of a cell.
        theirs: of one process.

    Raises:
        AssertionError: the two cannot be compared, or nothing was trained or split.
    """
    assert ours.split, "nothing was split, so nothing was proved"
    assert theirs.moved > 1e-3, f"next to nothing was trained: {theirs.moved}"
    assert len(ours.losses) == len(theirs.losses), (ours.losses, theirs.losses)
    assert ours.weights.keys() == theirs.weights.keys(), sorted(ours.weights.keys() ^ theirs.weights.keys())
    assert [set(s) for s in ours.statistics] == [set(s) for s in theirs.statistics]
    weights = []
    for name, right in theirs.weights.items():
        assert ours.weights[name].shape == right.shape, name
        gap = (ours.weights[name].double() - right.double()).abs().max() / right.double().abs().max()
        weights.append(float(gap))
    statistics = [
        _relative(mine[key], right[key]) / (SQUARES if key.endswith("effective_tokens") else 1)
        for mine, right in zip(ours.statistics, theirs.statistics, strict=True)
        for key in right
    ]
    return {
        "loss": max(map(_relative, ours.losses, theirs.losses)),
        "weights": max(weights),
        "statistics": max(statistics, default=0.0),
    }


def _relative(mine: float, right: float) -> float:
    if not math.isfinite(mine) or not math.isfinite(right):
        return math.inf
    return abs(mine - right) / abs(right) if right else abs(mine)
