"""Plots as numbers for an SVG: columns with what they stand for beside them in words, so that no colour is needed to read them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Column", "Plot", "columns", "spans", "within"]

WIDTH: Final = 360  # about a phone's, so that the letters are as large there as they were drawn
HEIGHT: Final = 150
_TOP: Final = 30  # room above the highest column for its number and its mark
_BASE: Final = 128  # where columns stand
_GAP: Final = 0.28  # of a column's room
_LETTER: Final = 6.4  # a digit's width at the size of the labels


@dataclass(frozen=True, slots=True)
class Column:
    """A column: what it stands for, how large that is, where it is drawn, and what is written at it."""

    label: str
    count: int
    x: float
    y: float
    width: float
    height: float
    under: str  # its label, or "" where the neighbours' leave no room
    over: str  # its number, or ""
    mark: str  # what is special about it

    @property
    def middle(self) -> float:
        """Where what is written at it is centred."""
        return round(self.x + self.width / 2, 1)

    @property
    def mark_middle(self) -> float:
        """The same of its mark, which may be wider than it is and stays within the drawing."""
        half = len(self.mark) * _LETTER / 2
        return round(min(max(self.middle, half), WIDTH - half), 1)


@dataclass(frozen=True, slots=True)
class Plot:
    """Columns, and the same in words."""

    id: str
    title: str
    description: str
    columns: tuple[Column, ...]
    names: tuple[str, str]  # of the labels and of the numbers
    base: int = _BASE
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(column.count for column in self.columns)


def columns(
    plot_id: str,
    title: str,
    counted: Sequence[tuple[str, int]],
    *,
    names: tuple[str, str],
    every: int = 1,
    marks: Mapping[int, str] | None = None,
) -> Plot:
    """Draw counts as columns.

    Args:
        plot_id: unique on its page.
        title: what is counted.
        counted: labels with counts, in their order.
        names: what the labels are, and what the counts are, for the table.
        every: one label in so many is written under its column.
        marks: by position, what is written over a column besides.
    """
    most = max((count for _, count in counted), default=0)
    room = WIDTH / max(1, len(counted))
    width = round(room * (1 - _GAP), 1)
    drawn = []
    for position, (label, count) in enumerate(counted):
        height = round((_BASE - _TOP) * count / most, 1) if most else 0.0
        fits = len(str(count)) * _LETTER <= room
        drawn.append(
            Column(
                label,
                count,
                x=round(position * room + room * _GAP / 2, 1),
                y=round(_BASE - height, 1),
                width=width,
                height=max(height, 1.0) if count else 0.0,
                under=label if position % every == 0 else "",
                over=str(count) if count and (fits or count == most) else "",
                mark=(marks or {}).get(position, ""),
            )
        )
    total = sum(count for _, count in counted)
    peak = next((label for label, count in counted if count == most), "")
    told = f"{total} in all; most at {peak}: {most}." if most else "Nothing was counted."
    return Plot(plot_id, title, told, tuple(drawn), names)


def within(edges: Sequence[float], value: float) -> int:
    """The position of the span that a value falls into; an edge belongs to the span above it."""
    return bisect_right(edges, value)


def spans(edges: Sequence[float], values: Sequence[float]) -> list[int]:
    """How many values lie below the first edge, between each two, and above the last."""
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[within(edges, value)] += 1
    return counts
