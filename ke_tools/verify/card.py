"""A scorecard as a picture: a bar for each rate with its bounds, what stands behind it in numbers, the worst case below."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final
from xml.sax.saxutils import escape

from ke_tools.verify.dimensions import DIMENSIONS, LABELS
from ke_tools.verify.rates import Rate
from ke_tools.verify.scorecard import FORCED

__all__ = ["drawn"]

_WIDTH: Final = 720
_MARGIN: Final = 24
_LEFT, _RIGHT = 180, 520  # of the bars
_ROW: Final = 26
_LINE: Final = 17
_LETTERS: Final = 104  # a line


def drawn(document: Mapping[str, Any], title: str, *, notes: Sequence[str] = ()) -> str:
    """Draw as SVG; the same document gives the same text.

    Args:
        document: what to show, as :meth:`~ke_tools.verify.scorecard.Scorecard.document` gives it and the ledger keeps it.
        title: above it.
        notes: lines below the rates, e.g. the gate's verdict, model and revision, the document's hash.
    """
    overall = {name: Rate.from_dict(found) for name, found in document["overall"].items()}
    rows = {LABELS[name]: overall[name] for name in DIMENSIONS} | {"bytes kept": overall["bytes_kept"]}
    rows |= {LABELS[row["dimension"]]: Rate.from_dict(row) for row in document["further"]}
    forced = {f"{LABELS[row['dimension']]}, forced": Rate.from_dict(row) for row in document.get("forced", ())}
    rows |= forced
    column = f"forced: {FORCED} probability of the target; it decides nothing." if forced else f"{FORCED.capitalize()}: not measured."
    cost = document.get("efficiency", "not measured")
    worst = f"Worst case: {document['worst_case']}" if document["worst_case"] else "Nothing went wrong."
    lines = [line for text in (*notes, column, f"Took: {cost}.", worst) for line in textwrap.wrap(text, _LETTERS)]
    top = 62
    end = top + _ROW * len(rows)
    height = end + _LINE * len(lines) + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13" role="img">',
        f"<title>{_safe(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{_MARGIN}" y="30" font-size="17">{_safe(title)}</text>',
        *(part for n, (label, rate) in enumerate(rows.items()) for part in _row(label, rate, top + _ROW * n)),
        *(f'<text x="{_MARGIN}" y="{end + _LINE * (n + 1)}" font-size="12">{_safe(line)}</text>' for n, line in enumerate(lines)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _row(label: str, rate: Rate, y: int) -> list[str]:
    """Its name, a bar as long as the rate, a whisker from bound to bound, the numbers."""
    name = f'<text x="{_MARGIN}" y="{y + 4}">{_safe(label)}</text>'
    told = f'<text x="{_RIGHT + 14}" y="{y + 4}">{_safe(str(rate))}</text>'
    ground = f'<rect x="{_LEFT}" y="{y - 6}" width="{_RIGHT - _LEFT}" height="12" fill="#e8e8e8"/>'
    if rate.value is None:
        return [name, ground, told]
    low, value, high = (_LEFT + (_RIGHT - _LEFT) * share for share in (rate.low, rate.value, rate.high))
    bar = f'<rect x="{_LEFT}" y="{y - 6}" width="{value - _LEFT:.1f}" height="12" fill="#3465a4"/>'
    bounds = f'<path d="M{low:.1f} {y - 9}v18M{low:.1f} {y}H{high:.1f}M{high:.1f} {y - 9}v18" stroke="black" fill="none"/>'
    return [name, ground, bar, bounds, told]


def _safe(text: str) -> str:
    """Escaped, and without the characters that XML cannot hold; a model may have said anything."""
    return escape("".join(c if c.isprintable() else "\ufffd" for c in text))
