"""Recall against false triggers."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import numpy as np
import pytest

from ke_tools.benches._frontier import NOT_JUDGED, frontier, picture

WITHIN = {"paraphrase": np.linspace(0.5, 1.0, 100)}
OUTSIDE = {"unrelated": np.array([0.1] * 9 + [0.75]), "nothing asked": np.zeros(0)}


def test_each_recall_has_its_threshold_and_what_passes_that() -> None:
    """Issue "Bars": where one cannot be reached, show the frontier."""
    row = frontier(WITHIN, OUTSIDE)["paraphrase"]

    at = dict(zip(row["recall"], zip(row["threshold"], row["false_triggers"]["unrelated"], strict=True), strict=True))
    assert at[1.0] == (0.5, 0.1)
    assert at[0.5][0] == pytest.approx(0.75, abs=0.01)
    assert at[0.5][1] == 0
    assert "nothing asked" not in row["false_triggers"]


def test_the_share_that_is_let_in_never_falls_as_recall_grows() -> None:
    """Thresholds only fall."""
    rng = np.random.default_rng(0)

    wrong = frontier({"a": rng.random(50)}, {"b": rng.random(50)})["a"]["false_triggers"]["b"]

    assert wrong == sorted(wrong)


def test_the_picture_is_a_drawing_with_a_named_line_for_each_pair() -> None:
    """Readable without colour: lines differ by their dashes."""
    found = frontier({**WITHIN, "alias <given>": WITHIN["paraphrase"]}, OUTSIDE)

    root = ET.fromstring(picture("zsre & more", found))  # noqa: S314  our own
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    dashes = [node.get("stroke-dasharray") for node in root.iter("{http://www.w3.org/2000/svg}polyline")]

    assert {"zsre & more", "paraphrase / unrelated", "alias <given> / unrelated"} <= set(texts)
    assert len(dashes) == len(set(dashes)) == 2


def test_a_recall_that_no_threshold_reaches_is_left_out() -> None:
    """An edit that was never looked at is missed at every threshold, and lets nothing in."""
    row = frontier({"a": np.array([0.9] * 9 + [NOT_JUDGED])}, {"b": np.array([NOT_JUDGED, 0.95])})["a"]

    assert max(row["recall"]) == 0.9
    assert set(row["false_triggers"]["b"]) == {0.5}


def test_nothing_measured_draws_an_empty_plot() -> None:
    """A file without paraphrases."""
    assert ET.fromstring(picture("x", frontier({}, OUTSIDE))) is not None  # noqa: S314  our own
