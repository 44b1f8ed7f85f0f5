"""``bench model``; issue section 2."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ke_tools import atlas
from ke_tools.benches import model
from ke_tools.config import Settings

pytestmark = pytest.mark.usefixtures("serving_path")

UNDECIDED = {"undecided, conditional", "undecided, judge"}  # issue, conditional route: both are measured


def test_an_obedient_model_obeys_everything_and_resists_nothing(settings: Settings, engine: Any) -> None:
    """Known facts, obedience by way and form, resistance; with standard errors."""
    engine.adapters = frozenset({"reader"})
    printed = model.run(settings, limit=24, engine=engine)
    results = printed["results"]
    assert (printed["bench"], printed["model"], printed["bars"], results["facts"]) == ("model", "obedient", [], 24)
    assert set(results["obedience"]) == {"ike-0", "ike-3", "ike-6", "reader", *UNDECIDED}
    for way in results["obedience"].values():
        assert set(way) == {"statement", "question", "chat"}
        assert all(found["value"] > 0.9 for found in way.values())
    assert results["resistance"]["ike-0"]["speaks_it"]["value"] == 1.0
    assert results["resistance"]["ike-0"]["keeps_answer"]["value"] == 0.0
    assert results["known"]["chat"]["n"] == 24
    assert "null" not in json.dumps(printed)


def test_a_model_that_ignores_its_context_obeys_nothing_and_keeps_everything(settings: Settings, engine: Any) -> None:
    """The other end of the scale; without a reader there is no row for one."""
    engine.obeys = False
    results = model.run(settings, limit=12, engine=engine)["results"]
    assert set(results["obedience"]) == {"ike-0", "ike-3", "ike-6", *UNDECIDED}
    assert results["obedience"]["ike-6"]["chat"]["value"] == 0.0
    assert results["resistance"]["ike-6"]["keeps_answer"]["value"] == 1.0


def test_what_is_known_is_counted_by_form_and_relation(settings: Settings, engine: Any) -> None:
    """Recall of a model that knows everything about its facts' subjects."""
    engine.known = {fact.subject: fact.objects[0] for fact in atlas.facts() if fact.relation == "capital"}
    results = model.run(settings, limit=60, engine=engine)["results"]
    assert results["known_by_relation"]["capital"]["value"] == 1.0
    assert 0 < results["known"]["all"]["value"] < 1
    assert results["known"]["all"]["stderr"] > 0


def test_questions_use_probe_wordings_only(settings: Settings, engine: Any) -> None:
    """Issue section 2: benches draw their generated probes from held-out wordings."""
    model.run(settings, limit=10, engine=engine)
    facts = {fact.subject for fact in atlas.facts()}
    for request in engine.asked[:30]:
        text = request.prompt or str(next(iter(request.messages or ()))["content"])
        assert any(atlas.holds_probe_wording(atlas.mask(text, [name])) for name in facts if name in text), text


def test_a_model_without_chat_template_is_not_asked_in_chat(settings: Settings, engine: Any) -> None:
    """It is not measured, and never 1.0."""
    engine.chat_roles = frozenset()
    results = model.run(settings, limit=8, engine=engine)["results"]
    assert not results["known"]["chat"]["measured"]
    assert not results["obedience"]["ike-0"]["chat"]["measured"]
    assert all(request.messages is None for request in engine.asked)


def test_the_sample_is_seeded_and_spread_over_relations(settings: Settings, engine: Any) -> None:
    """A quick run sees as many relations as it can."""
    first = model.run(settings, limit=10, seed=3, engine=engine)["results"]
    assert first == {**model.run(settings, limit=10, seed=3, engine=engine)["results"], "seconds": first["seconds"]}
    assert len(first["known_by_relation"]) == 10


def test_progress_is_told(settings: Settings, engine: Any) -> None:
    """Long work shows a bar."""
    told: list[tuple[str, int, int]] = []
    model.run(settings, limit=4, engine=engine, progress=lambda *state: told.append(state))
    assert ("knowledge", 12, 12) in told
    assert any(stage == "obedience ike-3" for stage, _, _ in told)
