"""Plots: where columns stand, what is written at them, and that they can be read without colour."""

from __future__ import annotations

import re

from ke_tools.servers.console.pages import _environment
from ke_tools.servers.console.plots import HEIGHT, WIDTH, columns, spans

HOURS = [(f"{hour:02}", hour) for hour in range(24)]


def svg(*counted: tuple[str, int], **more: object) -> str:
    """A plot as it stands on a page."""
    plot = columns("p", "Things by <hour>", list(counted), names=("hour", "things"), **more)  # type: ignore[arg-type]
    text = "{% from '_plots.html' import columns %}{{ columns(plot) }}"
    return _environment().from_string(text).render(plot=plot)


def test_columns_are_as_high_as_their_counts_and_inside_the_picture() -> None:
    """Issue 8, §3: plots as inline SVG."""
    made = columns("p", "Things", HOURS, names=("hour", "things"), every=4)
    heights = [column.height for column in made.columns]
    assert heights == sorted(heights)
    assert heights[0] == 0
    assert abs(heights[12] - heights[23] * 12 / 23) < 0.2
    assert all(column.x >= 0 and column.x + column.width <= WIDTH for column in made.columns)
    assert all(column.y - 16 - 11 >= 0 and column.y + column.height <= HEIGHT for column in made.columns)
    assert [column.under for column in made.columns if column.under] == ["00", "04", "08", "12", "16", "20"]


def test_a_small_count_beside_a_large_one_is_still_seen() -> None:
    """One of a thousand is not nothing."""
    made = columns("p", "Things", [("a", 1), ("b", 100_000)], names=("", ""))
    assert made.columns[0].height >= 1


def test_a_plot_tells_its_numbers_in_words_and_as_a_table() -> None:
    """Issue 8, §3: readable without colour: title, description, numbers as text, and a table beside it."""
    drawn = svg(("10", 3), ("11", 0), ("12", 5), marks={2: "p50"})
    assert '<title id="p-title">Things by &lt;hour&gt;</title>' in drawn
    assert '<desc id="p-desc">8 in all; most at 12: 5.</desc>' in drawn
    assert 'aria-labelledby="p-title p-desc"' in drawn
    assert re.findall(r'<td>(\d+)</td><td class="number">(\d+)</td>', drawn) == [("10", "3"), ("11", "0"), ("12", "5")]
    assert re.search(r'<text class="mark"[^>]*>p50</text>', drawn)
    assert drawn.count("<rect") == 2
    assert "style=" not in drawn


def test_numbers_that_would_run_into_each_other_are_left_to_the_table_but_for_the_highest() -> None:
    """A label that cannot be read is worse than none."""
    made = columns("p", "Things", [(str(hour), 1000 + hour) for hour in range(24)], names=("", ""))
    assert [column.over for column in made.columns if column.over] == ["1023"]


def test_nothing_is_a_plot_too() -> None:
    """Issue 8, §3: empty states are designed."""
    made = columns("p", "Things", [("a", 0), ("b", 0)], names=("", ""))
    assert made.is_empty
    assert made.description == "Nothing was counted."
    assert columns("p", "Things", [], names=("", "")).is_empty


def test_values_are_counted_in_the_span_they_fall_into() -> None:
    """An edge belongs to the span above it, and nothing is lost at either end."""
    assert spans((1, 2, 5), [0, 0.5, 1, 1.9, 2, 5, 1e9]) == [2, 2, 1, 2]


def test_a_mark_at_the_edge_stays_within_the_drawing() -> None:
    """Nothing that is written is cut."""
    plot = columns("a", "A", [(str(n), 1) for n in range(9)], names=("n", "count"), marks={0: "p50, p99", 8: "p50, p99"})
    first, last = plot.columns[0], plot.columns[-1]
    assert first.mark_middle > first.middle
    assert last.mark_middle < last.middle
