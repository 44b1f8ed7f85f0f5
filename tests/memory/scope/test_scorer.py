"""The scorers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ke_tools import atlas
from ke_tools.errors import ModelUnavailable
from ke_tools.memory.scope.network import WEIGHTS
from ke_tools.memory.scope.scorer import CARD, CosineScorer, Pair, TrainedScorer, shipped_folder
from ke_tools.testing import HashingEmbedder


def test_the_cosine_scorer_compares_the_question_with_the_edits_words() -> None:
    """For embedders that no scorer was trained on; the target plays no part."""
    scorer = CosineScorer(HashingEmbedder())

    pairs = [Pair("Who rules X?", "Who rules X?", "Ada"), Pair("Who rules X?", "The anthem of X is")]
    (same, open_), (other, _) = scorer.score(pairs).tolist()

    assert same == pytest.approx(1)
    assert open_ == 0
    assert other < scorer.grey


def test_no_pairs_have_no_scores() -> None:
    """The shape stays (n, 2)."""
    assert CosineScorer(HashingEmbedder()).score([]).shape == TrainedScorer(shipped_folder()).score([]).shape == (0, 2)


@pytest.mark.parametrize("damage", ["weights", "card", "thresholds"])
def test_a_damaged_scorer_is_told_with_a_remedy(tmp_path: Path, damage: str) -> None:
    """Failure paths are real."""
    card = json.loads((shipped_folder() / CARD).read_text("utf-8"))
    if damage != "weights":
        (tmp_path / WEIGHTS).write_bytes(b"")
    (tmp_path / CARD).write_text("{" if damage == "card" else json.dumps({**card, "thresholds": {}} if damage == "thresholds" else card))

    with pytest.raises(ModelUnavailable, match="scope scorer"):
        TrainedScorer(tmp_path)


def test_the_shipped_scorer_is_small_and_says_where_it_comes_from() -> None:
    """Issue §2: a few MB at most, with a card."""
    scorer = TrainedScorer(shipped_folder())

    assert (shipped_folder() / WEIGHTS).stat().st_size < 6_000_000
    assert 0 < scorer.grey < scorer.within < 1
    assert all(len(data["sha256"]) == 64 for data in scorer.card["data"])
    assert scorer.card["without"] == []


def test_slots_are_many_and_none_is_a_relation_kept_for_probes() -> None:
    """Issue §2: at least 150 relations; design §4 no. 4: we never grade ourselves on what we trained on."""
    slots = atlas.slots()

    assert len({slot.id for slot in slots}) == len(slots) > 400
    assert {name for slot in slots for name in slot.near} <= {slot.id for slot in slots}
    assert all(wording.count("{}") == 1 for slot in slots for wording in (*slot.statements, *slot.questions, slot.masked))
    assert {slot.subject for slot in slots} == atlas.slot_subjects().keys()
    held = [r.masked for r in atlas.relations().values() if r.probe]
    assert not [slot.id for slot in slots if slot.masked in held]
