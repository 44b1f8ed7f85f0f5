"""What the reader is trained on."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from ke_tools import atlas
from ke_tools.models.reader.samples import Source, build, training_texts


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file in CounterFact's shape: one ordinary case, one whose rephrasing is a probe wording of ours."""
    probe = atlas.relations()["capital"].probe_statements[0].replace("{}", "Freedonia")
    rows = [
        {"subject": "Sylvania", "prompt": "The capital of Sylvania is", "target_new": "Bloom", "rephrase_prompt": "Sylvania is run from"},
        {"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target_new": "Firefly", "rephrase_prompt": probe},
    ]
    common = {"ground_truth": "x", "locality_prompt": "The capital of Ruritania is", "locality_ground_truth": "Strelsau"}
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([row | common for row in rows]), "utf-8")
    return path


def test_no_text_that_training_may_use_is_a_probe_wording(data: Path) -> None:
    """Issue §2: a test collects every training script's texts and fails on an overlap."""
    texts = list(training_texts([data]))

    assert len(texts) > 1000
    assert [text for text in texts if atlas.holds_probe_wording(text)] == []


def test_no_sample_asks_or_tells_in_a_probe_wording(data: Path) -> None:
    """The same, on what is built rather than on what it is built from."""
    for sample in build(Source([data]), 300, seed=1):
        for relation in atlas.relations().values():
            assert not any(
                wording in sample.question for wording in (w.replace("{}", "") for w in relation.held_out_wordings) if len(wording) > 40
            )


def test_the_same_seed_builds_the_same_samples(data: Path) -> None:
    """A training must be repeatable (issue §2: seeded)."""
    assert build(Source([data]), 50, seed=3) == build(Source([data]), 50, seed=3)
    assert build(Source([data]), 50, seed=3) != build(Source([data]), 50, seed=4)


def test_an_in_scope_sample_is_told_the_object_that_it_must_answer() -> None:
    """The reader learns to copy from its facts; an object that they do not name could not be learnt."""
    for sample in build(Source([]), 200, seed=5):
        if not sample.irrelevant:
            stated = sample.answer.strip().rstrip(".")
            assert any(stated in fact for fact in sample.facts)


def test_an_irrelevant_sample_waits_for_the_base_models_answer() -> None:
    """Issue §2: the answer to an irrelevant fact is the base model's own."""
    irrelevant = [sample for sample in build(Source([]), 200, seed=6) if sample.irrelevant]

    assert 20 < len(irrelevant) < 100
    assert {sample.answer for sample in irrelevant} == {""}


def test_one_to_four_facts_stand_directly_before_the_last_user_turn() -> None:
    """Issue §3, router: the fact is written directly before the last user turn."""
    chats = [sample for sample in build(Source([]), 400, seed=7) if sample.chat]

    assert {len(sample.facts) for sample in chats} == {1, 2, 3, 4}
    for sample in chats:
        *_, told, asked = sample.messages
        assert told["role"] == "system"
        assert all(" ".join(fact.split()).replace('"', "'") in told["content"] for fact in sample.facts)
        assert asked["role"] == "user"


def test_excluded_subjects_are_left_out(data: Path) -> None:
    """Issue, done when: the bench's subjects occur in no training data."""
    source = Source([data], frozenset({"sylvania"}))

    assert source.subjects == frozenset({"freedonia"})


def test_probe_relations_are_never_drawn() -> None:
    """Issue §2: a fifth of the relations is kept from everything that is fitted."""
    source, rng = Source([]), random.Random(0)

    assert {source.draw(rng).slot for _ in range(500)} & {r.id for r in atlas.relations().values() if r.probe} == set()
