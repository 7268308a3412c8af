"""Pictures as SVG: the same numbers make the same file, and it needs no browser and no package."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from dft_plugin.runs.page import COLOURS

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 720, 64, 16, 34, 44
INK, LINE = "#77818b", "#77818b55"
"""Readable on a light and on a dark ground."""

Point = tuple[float, float]


def colour(number: int) -> str:
    """Return a colour."""
    return COLOURS[number % len(COLOURS)]


def text(x: float, y: float, said: str, anchor: str = "middle", fill: str = INK, size: int = 12) -> str:
    """Return words, at pixels."""
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {where} fill="{fill}" font-size="{size}">{html.escape(said)}</text>'


def stroke(a: Point, b: Point, ink: str = LINE, width: float = 1, dash: str = "") -> str:
    """Return a straight line, between pixels."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}" stroke="{ink}" '
        f'stroke-width="{width:g}"{dashed}/>'
    )


@dataclass
class Axes:
    """A ground to draw on; everything that is drawn is in the units of the data.

    Attributes:
        across: least and greatest x.
        up: least and greatest y.
        height: in pixels.
        left: pixels for what stands before the y axis.
        parts: what was drawn.
    """

    across: Point
    up: Point
    height: int = 320
    left: int = LEFT
    parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> Point:
        """Return the pixels of a point."""
        share_x = (x - self.across[0]) / (self.across[1] - self.across[0])
        share_y = (y - self.up[0]) / (self.up[1] - self.up[0])
        wide, high = WIDTH - self.left - RIGHT, self.height - TOP - BOTTOM
        return self.left + share_x * wide, self.height - BOTTOM - share_y * high

    def ticks_x(self, ticks: Sequence[tuple[float, str]], title: str) -> None:
        """Draw the x axis."""
        for x, said in ticks:
            low, high = self.at(x, self.up[0]), self.at(x, self.up[1])
            self.parts += [stroke(low, high), text(low[0], low[1] + 16, said)]
        self.parts.append(text((self.left + WIDTH - RIGHT) / 2, self.height - 8, title))

    def ticks_y(self, ticks: Sequence[tuple[float, str]], title: str = "") -> None:
        """Draw the y axis."""
        for y, said in ticks:
            begin, end = self.at(self.across[0], y), self.at(self.across[1], y)
            self.parts += [stroke(begin, end), text(begin[0] - 8, begin[1] + 4, said, "end")]
        if title:
            self.parts.append(text(4, 14, title, "start"))

    def dot(self, point: Point, ink: str, title: str, radius: float = 5) -> None:
        """Draw a point that says what it is when it is pointed at."""
        x, y = self.at(*point)
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{ink}" fill-opacity="0.85">'
            f"<title>{html.escape(title)}</title></circle>"
        )

    def whisker(self, point: Point, half: float, ink: str, *, along_x: bool = False) -> None:
        """Draw an interval around a point; none where it is not known."""
        if not half or math.isinf(half):
            return
        x, y = point
        ends = [(x - half, y), (x + half, y)] if along_x else [(x, y - half), (x, y + half)]
        kept = [(_within(a, self.across), _within(b, self.up)) for a, b in ends]
        self.parts.append(stroke(self.at(*kept[0]), self.at(*kept[1]), ink, 1.5))

    def curve(self, points: Sequence[Point], ink: str, dash: str = "") -> None:
        """Draw a line through points."""
        pixels = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<polyline points="{pixels}" fill="none" stroke="{ink}" stroke-width="2"{dashed}/>')

    def rule(self, a: Point, b: Point, dash: str = "4 4") -> None:
        """Draw a line that belongs to the ground."""
        self.parts.append(stroke(self.at(*a), self.at(*b), INK, 1, dash))

    def legend(self, entries: Sequence[tuple[str, str]]) -> None:
        """Say which colour is what, from the right, above the ground."""
        x = float(WIDTH - RIGHT)
        for said, ink in reversed(entries):
            x -= 7 * len(said)
            self.parts += [text(x, 14, said, "start"), f'<circle cx="{x - 9:.1f}" cy="10" r="5" fill="{ink}"/>']
            x -= 30

    def svg(self, title: str) -> str:
        """Return the picture."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" role="img" '
            f'font-family="system-ui, sans-serif"><title>{html.escape(title)}</title>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def _within(value: float, ends: Point) -> float:
    return min(max(value, ends[0]), ends[1])
