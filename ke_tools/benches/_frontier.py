"""Recall against false triggers, were there one threshold for all edits; as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ke_tools.benches._drawing import MARGIN, WIDTH, Plot, legend, line, svg

__all__ = ["NOT_JUDGED", "frontier", "picture"]

_RECALLS: Final = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 1.0)
_HEIGHT: Final = 400
_PLOT: Final = Plot(MARGIN, 72, WIDTH - MARGIN, 360)
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
    parts = _PLOT.axes(
        [(f"{share * widest:.1%}", share) for share in (0, 0.25, 0.5, 0.75, 1)],
        [(f"{recall:.0%}", _height(recall)) for recall in (0.5, 0.7, 0.9, 0.95, 1.0)],
        ("false triggers", "recall"),
    )
    for number, (name, recall, wrong) in enumerate(lines):
        parts.append(line([_PLOT.place(x / widest, _height(y)) for x, y in zip(wrong, recall, strict=True)], number))
        parts.append(legend(name, number, WIDTH - 330, _PLOT.bottom - 72 - 16 * number))
    return svg(_HEIGHT, title, parts)


def _height(recall: float) -> float:
    return (recall - _RECALLS[0]) / (1 - _RECALLS[0])
