"""Recall against false triggers, were there one threshold for all edits; as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOT_JUDGED", "frontier", "picture"]

_RECALLS: Final = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 1.0)
_WIDTH, _HEIGHT, _MARGIN = 640, 400, 56
_DASHES: Final = ("", "7 4", "2 4", "9 3 2 3", "12 6", "1 7")  # lines are told apart without colour
NOT_JUDGED: Final = -1.0  # the score of a question for which the edit was never looked at: no threshold reaches it

Scores = Mapping[str, NDArray[np.float64]]


def frontier(within: Scores, outside: Scores) -> dict[str, Any]:
    """For each kind of question that is about an edit the share of each other kind that is let in at the threshold with a given recall.

    Args:
        within: scores of questions by kind, that of the right edit each, or ``NOT_JUDGED``.
        outside: scores of questions that are about none, the highest each.
    """
    return {kind: _row(scores, outside) for kind, scores in within.items() if len(scores)}


def _row(scores: NDArray[np.float64], outside: Scores) -> dict[str, Any]:
    ranked = np.sort(scores)[::-1]  # the k-th highest is the highest threshold with a recall of k/n
    found = {recall: float(ranked[int(np.ceil(recall * len(ranked))) - 1]) for recall in _RECALLS}
    reached = {recall: threshold for recall, threshold in found.items() if threshold > NOT_JUDGED}
    passing = {other: [round(float((rest >= t).mean()), 4) for t in reached.values()] for other, rest in outside.items() if len(rest)}
    return {"recall": list(reached), "threshold": [round(t, 4) for t in reached.values()], "false_triggers": passing}


def picture(title: str, found: Mapping[str, Any]) -> str:
    """Draw a frontier as SVG: recall upwards, false triggers to the right, a line for each pair of kinds."""
    lines = [(f"{kind} / {other}", row["recall"], wrong) for kind, row in found.items() for other, wrong in row["false_triggers"].items()]
    widest = max([0.05, *(x for _, _, wrong in lines for x in wrong)])
    drawn = [
        _line(name, [_place(x / widest, (y - _RECALLS[0]) / (1 - _RECALLS[0])) for x, y in zip(wrong, recall, strict=True)], number)
        for number, (name, recall, wrong) in enumerate(lines)
    ]
    across = [(f"{share * widest:.1%}", _place(share, 0)) for share in (0, 0.25, 0.5, 0.75, 1)]
    up = [(f"{recall:.0%}", _place(0, (recall - _RECALLS[0]) / (1 - _RECALLS[0]))) for recall in (0.5, 0.7, 0.9, 0.95, 1.0)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            f'<text x="{_MARGIN}" y="24" font-size="15">{escape(title)}</text>',
            *(f'<text x="{x:.0f}" y="{y + 16:.0f}" text-anchor="middle">{text}</text>' for text, (x, y) in across),
            *(
                f'<text x="{x - 6:.0f}" y="{y + 4:.0f}" text-anchor="end">{text}</text>'
                f'<line x1="{x}" x2="{_WIDTH - _MARGIN}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ccc"/>'
                for text, (x, y) in up
            ),
            f'<text x="{_WIDTH / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">false triggers</text>',
            f'<text x="{_MARGIN}" y="44">recall</text>',
            *drawn,
            "</svg>",
        ]
    )


def _place(x: float, y: float) -> tuple[float, float]:
    """A point of the plot, 0 to 1 each way, on the picture."""
    return _MARGIN + x * (_WIDTH - 2 * _MARGIN), _HEIGHT - _MARGIN + 16 - y * (_HEIGHT - 2 * _MARGIN)


def _line(name: str, points: Sequence[tuple[float, float]], number: int) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash, below = f'stroke-dasharray="{_DASHES[number % len(_DASHES)]}"', _HEIGHT - 2 * _MARGIN - 16 * number
    return (
        f'<polyline points="{path}" fill="none" stroke="black" stroke-width="2" {dash}/>'
        f'<line x1="{_WIDTH - 330}" x2="{_WIDTH - 300}" y1="{below}" y2="{below}" stroke="black" stroke-width="2" {dash}/>'
        f'<text x="{_WIDTH - 294}" y="{below + 4}">{escape(name)}</text>'
    )
