"""What the scorer is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from ke_tools import atlas
from ke_tools.memory.scope import pairs
from ke_tools.memory.scope.corpora import Corpus, Group, corpora
from ke_tools.memory.scope.pairs import OPEN, OTHER, SAME, Labelled, Maker
from ke_tools.testing import HashingEmbedder

KINGDOM = Corpus(
    "kingdom",
    (
        Group("ruler", ("The ruler of {} is", "Who rules {}?"), kind="country", masked="the ruler of {}", targets=("Ada",)),
        Group("anthem", ("The anthem of {} is", "What does {} sing?"), kind="country", masked="the anthem of {}", targets=("Oh",)),
        Group(
            "author",
            ("{} was written by", "Who wrote {}?"),
            kind="book",
            contrasts=("When was {} printed?",),
            opens=("Who taught the author of {}?",),
        ),
        Group("penned", ("{} was penned by",), kind="book", alike=frozenset({"author"})),
    ),
)


def embed(texts: Sequence[str]) -> Any:
    """Words in common."""
    return HashingEmbedder(64).encode(texts)


def drawn(*of: Corpus, seed: int = 0, share: float = 20) -> list[Labelled]:
    """Many pairs."""
    return Maker(of, embed, seed=seed).draw(share)


def test_the_same_seed_draws_the_same() -> None:
    """A card's recipe makes the scorer again."""
    assert drawn(KINGDOM, seed=3) == drawn(KINGDOM, seed=3) != drawn(KINGDOM, seed=4)


def test_every_class_is_drawn() -> None:
    """Issue §2: hard negatives, and what only may take the fact."""
    labels = Counter(pair.label for pair in drawn(KINGDOM))

    assert labels.keys() == {SAME, OPEN, OTHER}
    assert labels[SAME] > 50


def test_another_relation_of_the_same_type_is_no_match() -> None:
    """Issue §2: hard negatives first."""
    wrong = {pair.asked for pair in drawn(KINGDOM) if pair.edit.startswith("The ruler of {} is") and pair.label == OTHER}

    assert {"The anthem of {} is", "What does {} sing?"} & wrong
    assert not {"The ruler of {} is", "Who rules {}?"} & wrong


def test_what_may_be_the_same_relation_is_no_negative() -> None:
    """Two names for one relation must not teach that they differ."""
    wrong = {pair.asked for pair in drawn(KINGDOM) if pair.edit.startswith("{} was penned by") and pair.label == OTHER}

    assert "Who wrote {}?" not in wrong
    assert "Who rules {}?" in wrong


def test_contrasts_and_hops_keep_their_class() -> None:
    """KnowEdit asks for other relations of the subject, and for what takes the fact as a step."""
    found = {(pair.asked, pair.label) for pair in drawn(KINGDOM) if "written" in pair.edit or "wrote" in pair.edit}

    assert {("When was {} printed?", OTHER), ("Who taught the author of {}?", OPEN)} <= found
    assert not {("When was {} printed?", SAME), ("Who taught the author of {}?", OTHER)} & found


def test_no_pair_holds_a_probe_wording() -> None:
    """Design §4 no. 4: not even two texts joined."""
    made = drawn(*corpora(), share=0.02)

    assert len(made) > 100
    assert not [pair for pair in made if atlas.holds_probe_wording(pair.asked) or atlas.holds_probe_wording(pair.edit)]
    assert not [text for text in pairs.training_phrases() if atlas.holds_probe_wording(text)]


@pytest.mark.parametrize("label", [SAME, OPEN, OTHER])
def test_every_question_has_its_subject(label: int) -> None:
    """A question without the mask could be about anything."""
    assert all(pair.asked.count("{}") >= 1 and "{m}" not in pair.asked for pair in drawn(KINGDOM) if pair.label == label)
