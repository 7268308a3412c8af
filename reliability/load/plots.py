"""A picture of each soak: what the process held, step by step."""

from __future__ import annotations

from typing import Any

from evidence.drawing import Axes, colour
from reliability.load.soak import WARM

MEASURES = {
    "resident_mib": "Resident memory, MiB above that after warm-up",
    "objects": "Objects of Python above those after warm-up",
    "files": "Open files",
    "ours_kib": "KiB that lines of dft_plugin hold",
}


def picture(rows: list[dict[str, Any]], measure: str) -> str:
    """Draw one measure of several soaks over their steps."""
    curves = {row["loss"]: _above(row["seen"], measure) for row in rows if measure in row["seen"][0]}
    points = [point for curve in curves.values() for point in curve]
    low, high = min(y for _, y in points), max(y for _, y in points)
    room = max(1.0, 0.15 * (high - low))
    last = max(x for x, _ in points)
    axes = Axes((0.0, last), (low - room, high + room), height=260)
    axes.ticks_x([(last * part / 5, f"{last * part / 5:,.0f}") for part in range(6)], "optimizer steps")
    axes.ticks_y([(y, f"{y:,.4g}") for y in _ticks(low - room, high + room)], MEASURES[measure])
    for number, curve in enumerate(curves.values()):
        axes.curve(curve, colour(number))
    axes.legend([(str(name), colour(number)) for number, name in enumerate(curves)])
    return axes.svg(MEASURES[measure])


def _above(seen: list[dict[str, Any]], measure: str) -> list[tuple[float, float]]:
    last = seen[-1]["step"]
    warm = next(one[measure] for one in seen if one["step"] >= WARM * last)
    base = 0.0 if measure in ("files", "ours_kib") else warm
    return [(one["step"], one[measure] - base) for one in seen if one["step"] >= WARM * last / 4]


def _ticks(low: float, high: float) -> list[float]:
    return [low + (high - low) * part / 4 for part in range(5)]
