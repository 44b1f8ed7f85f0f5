"""Lines in a plot, drawn as SVG; they are told apart without colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

__all__ = ["MARGIN", "WIDTH", "Plot", "legend", "line", "svg"]

WIDTH, MARGIN = 640, 56
_DASHES: Final = ("", "7 4", "2 4", "9 3 2 3", "12 6", "1 7")

Point = tuple[float, float]  # of the picture


def svg(height: int, title: str, parts: Sequence[str]) -> str:
    """A picture of its parts under a title."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            f'<text x="{MARGIN}" y="24" font-size="15">{escape(title)}</text>',
            *parts,
            "</svg>",
        ]
    )


@dataclass(frozen=True, slots=True)
class Plot:
    """The rectangle of a picture that a plot fills."""

    left: int
    top: int
    right: int
    bottom: int

    def place(self, x: float, y: float) -> Point:
        """A point of the plot, 0 to 1 each way, on the picture."""
        return self.left + x * (self.right - self.left), self.bottom - y * (self.bottom - self.top)

    def axes(self, across: Sequence[tuple[str, float]], up: Sequence[tuple[str, float]], names: tuple[str, str]) -> list[str]:
        """Labels below and on the left, each at its share of the way, and what they are of."""
        below = [(text, self.place(share, 0)) for text, share in across]
        beside = [(text, self.place(0, share)) for text, share in up]
        return [
            *(f'<text x="{x:.0f}" y="{y + 16:.0f}" text-anchor="middle">{escape(text)}</text>' for text, (x, y) in below),
            *(
                f'<text x="{x - 6:.0f}" y="{y + 4:.0f}" text-anchor="end">{escape(text)}</text>'
                f'<line x1="{x}" x2="{self.right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ccc"/>'
                for text, (x, y) in beside
            ),
            f'<text x="{(self.left + self.right) / 2:.0f}" y="{self.bottom + 32}" text-anchor="middle">{escape(names[0])}</text>',
            f'<text x="{self.left}" y="{self.top - 28}">{escape(names[1])}</text>',
        ]


def line(points: Sequence[Point], number: int) -> str:
    """A line through points; each number has dashes of its own, as far as there are any."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="black" stroke-width="2" {_dash(number)}/>'


def legend(name: str, number: int, x: int, y: int) -> str:
    """What a line is called, with a piece of it."""
    return (
        f'<line x1="{x}" x2="{x + 30}" y1="{y}" y2="{y}" stroke="black" stroke-width="2" {_dash(number)}/>'
        f'<text x="{x + 36}" y="{y + 4}">{escape(name)}</text>'
    )


def _dash(number: int) -> str:
    return f'stroke-dasharray="{_DASHES[number % len(_DASHES)]}"'
