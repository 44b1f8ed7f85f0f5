"""``bench scope --synthetic``; the issue on scope, "Measured" (100,000 live edits, 1,000,000 events)."""

from __future__ import annotations

from ke_tools.benches import scale
from ke_tools.config import Settings


def test_a_small_run_measures_everything_and_keeps_its_bars(settings: Settings) -> None:
    """The shape is that of the large run."""
    told: list[str] = []
    printed = scale.run(
        settings,
        synthetic=300,
        logged=400,
        risky=10,
        one_subject=80,
        asked=10,
        embedder="hashing",
        progress=lambda stage, _done, _total: told.append(stage),
    )

    results = printed["results"]
    assert (results["edits"], results["events"]) == (300, 490)
    assert "note" not in results["cold_with_file"]
    assert results["question"]["own_words_in_scope"] > 0.5
    assert results["question"]["in"]["n"] + results["question"]["grey"]["n"] > 0
    assert results["one_more_edit"]["effective"]["n"] == 10
    assert {bar["name"].split(",")[0] for bar in printed["bars"]} == {
        "memory of scope and ledger",
        "cold start with index file",
        "one more edit effective",
        "question that names no edited subject",
        "question in scope",
        "question among risky edits",
    }
    assert {"import bench", "further events"} <= set(told)
    assert not settings.home.exists()
    assert not settings.cache.exists()
