"""``bench promote``: what it counts, and a whole run on the thimble."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ke_tools.benches import promote
from ke_tools.config import Settings
from ke_tools.testing import thimble_path


def rate(value: float, *, measured: bool = True) -> dict[str, Any]:
    """As a rate renders."""
    return {"measured": measured, "value": value, "stderr": 0.0, "low": value, "high": value, "n": 10}


def test_what_was_not_measured_has_no_bar_and_what_is_missed_says_so() -> None:
    """Issue 6, bars: of the whole set with the memory, and of what was carried by the weights alone."""
    results = {
        "with_memory": {"reliability": rate(0.97), "locality_other_subject": rate(0.0, measured=False)},
        "by_weights": {"reliability": rate(0.96)},
        "seconds": {"promote": 16.0},
        "longest_silence_seconds": 1.0,
    }
    bars = {bar.name: bar.ok for bar in promote._bars(results, 0.6, is_thimble=True)}
    assert bars == {
        "reliability, memory included": False,
        "reliability, by the weights alone": True,
        "carried by weights or codebook": True,
        "seconds to promote": False,
        "longest silence in seconds": True,
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_ends_every_edit_on_a_rung_and_flips_there_and_back(settings: Settings) -> None:
    """Issue 6, bars: every edit ends on some rung; the same release gives the same answers again."""
    found = promote.run(replace(settings, model=str(thimble_path())), edits=3, method="memit")["results"]
    assert sum(found["rungs"].values()) == found["edits"] == 3
    assert set(found["with_memory"]) == {"reliability", "generalisation", "locality_same_subject", "locality_other_subject"}
    assert found["decisions"]
    if found["rungs"].get("memit"):
        assert found["same_answers_again"]
        assert found["flip_out_seconds"] > 0
