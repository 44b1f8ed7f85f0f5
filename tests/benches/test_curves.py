"""Rates and seconds against the number of edits."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import pytest

from ke_tools.benches._curves import picture
from ke_tools.verify import NOT_MEASURED, rate

SVG = "{http://www.w3.org/2000/svg}"


def point(right: int, of: int, seconds: float) -> dict[str, Any]:
    """One number of edits; no paraphrases were asked."""
    found = rate([True] * right + [False] * (of - right)).as_dict()
    return {
        "free generation": {"statement": found, "paraphrase": NOT_MEASURED.as_dict()},
        "as published": {"statement": {"before": found, "after": found}},
        "efficiency": {"s an edit": seconds},
    }


def drawn(points: dict[int, Any]) -> Any:
    """The picture, read back."""
    return ET.fromstring(picture("memit & <co>", points))  # noqa: S314  our own


def test_each_rate_that_was_measured_has_a_line_with_its_bounds() -> None:
    """Issue, cost: free generation and as published, error bars, readable without colour."""
    root = drawn({1: point(1, 1, 0.5), 10: point(9, 10, 0.2), 100: point(95, 100, 0.1)})

    texts = [node.text for node in root.iter(f"{SVG}text")]
    assert {"memit & <co>", "edits", "rates", "seconds an edit", "statement, free", "statement, published"} <= set(texts)
    assert "paraphrase, free" not in texts
    assert len(list(root.iter(f"{SVG}polyline"))) == 3
    upright = [node for node in root.iter(f"{SVG}line") if node.get("x1") == node.get("x2")]
    assert len(upright) == 2 * 3


def test_numbers_of_edits_lie_in_equal_factors_and_seconds_rise_from_nought() -> None:
    """A logarithmic axis; 0 is part of the seconds' one."""
    root = drawn({1: point(1, 1, 0.4), 10: point(9, 10, 0.2), 100: point(95, 100, 0.1)})

    *_, seconds = root.iter(f"{SVG}polyline")
    places = [tuple(map(float, pair.split(","))) for pair in seconds.get("points", "").split()]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 - y0 == pytest.approx(2 * (y2 - y1), abs=0.3)


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_a_single_number_of_edits_is_drawn(seconds: float) -> None:
    """Nothing to scale by."""
    assert drawn({5: point(4, 5, seconds)}) is not None
