"""What edits in the weights do and cost, against their number: as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from ke_tools.benches._drawing import MARGIN, WIDTH, Plot, legend, line, svg

__all__ = ["picture"]

_HEIGHT: Final = 560
_RATES, _SECONDS = Plot(MARGIN, 72, WIDTH - 210, 300), Plot(MARGIN, 376, WIDTH - 210, 512)
_KINDS: Final = ("statement", "paraphrase", "neighbour")
_APART: Final = 3  # so that error bars at one number of edits do not hide one another


def picture(title: str, points: Mapping[int, Any]) -> str:
    """Draw rates with their 95 % bounds, free generation's and the published ones, and below them the seconds that an edit took.

    Args:
        title: stands above.
        points: by number of edits, what :func:`ke_tools.benches.editors.run` gives of it.
    """
    numbers = sorted(points)
    where = _scale(numbers)
    across = [(str(number), where(number)) for number in numbers]
    parts = _RATES.axes(across, [(f"{share:.0%}", share) for share in (0, 0.25, 0.5, 0.75, 1)], ("edits", "rates"))
    for order, (name, found) in enumerate(_rates(points).items()):
        drawn = [(_aside(_RATES.place(where(n), rate["value"]), order), rate) for n, rate in found.items()]
        parts.append(line([place for place, _ in drawn], order))
        parts += [_error(place[0], rate) for place, rate in drawn]
        parts.append(legend(name, order, WIDTH - 200, _RATES.top + 8 + 16 * order))
    cost = {number: float(points[number]["efficiency"]["s an edit"]) for number in numbers}
    most = max(cost.values()) or 1.0
    up = [(f"{share * most:.2g}", share) for share in (0, 0.5, 1)]
    parts += _SECONDS.axes(across, up, ("edits", "seconds an edit"))
    parts.append(line([_SECONDS.place(where(number), took / most) for number, took in cost.items()], 0))
    return svg(_HEIGHT, title, parts)


def _scale(numbers: list[int]) -> Callable[[int], float]:
    """Where a number of edits lies, 0 to 1, in equal factors; a single one in the middle."""
    low, high = math.log(numbers[0]), math.log(numbers[-1])
    return lambda number: (math.log(number) - low) / (high - low) if high > low else 0.5


def _rates(points: Mapping[int, Any]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """By line and number of edits, the rates that were measured."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for number, point in sorted(points.items()):
        for kind in _KINDS:
            rates = {"free": point["free generation"].get(kind), "published": point["as published"].get(kind, {}).get("after")}
            for group, rate in rates.items():
                if rate and rate["measured"]:
                    found.setdefault(f"{kind}, {group}", {})[number] = rate
    return found


def _aside(place: tuple[float, float], order: int) -> tuple[float, float]:
    return place[0] + _APART * (order - len(_KINDS) + 0.5), place[1]


def _error(x: float, rate: Mapping[str, Any]) -> str:
    low, high = (_RATES.place(0, rate[end])[1] for end in ("low", "high"))
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="black"/>'
